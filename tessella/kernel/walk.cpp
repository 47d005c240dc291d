// Walks along a grid: before each symbol the programs that are due, and then the symbol itself, drawn from what they made.
//
// tessella/sampling/kernel_walk.py writes the records and compares them with tessella_walk_layout() below. What is drawn
// follows sampling/walk.py and rule.py, heads/logistic_mixture.py and nn/linear_predictor.py, to rounding: here all of it is
// in double precision. Log-probabilities may lack a constant, which changes no argmax.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "functions.h"

extern "C" void tessella_share(const void* ops, int64_t index, int64_t first, int64_t count, int64_t places,
                               const int64_t* values, int64_t bytes, std::atomic<int64_t>* wrong, int thread, int threads);

namespace {

constexpr int L = Lanes<double>::count;
constexpr double INFINITE = std::numeric_limits<double>::infinity();

// A program, as compiled.py has it; `threads` are the most that share one of its operations.
struct Program {
    int64_t records, count, batch, places, threads, weight_bytes;
};

// Everything about a walk that stays. Numbers named after types are addresses; a row is an image, or with guidance each
// image has a second row without its class, after those of all images.
struct Walk {
    int64_t bytes;         // of a parameter, a weight and so on: 4 or 8
    int64_t images, rows;  // rows are as many, or twice as many with guidance
    int64_t height, width, channels, levels;
    int64_t programs;    // Program [program_count]
    int64_t program_count;
    int64_t starts;      // int64 [symbols + 1], the first run of each symbol from `listed` on
    int64_t runs;        // int64 [runs], the program of each
    int64_t values;      // int64 [runs, variables]
    int64_t variables;
    int64_t listed;
    int64_t parameters;  // number [rows, size], with a stride
    int64_t parameter_stride;
    int64_t newest;      // addresses of int64 [rows], one for each channel
    int64_t x;           // int64 [images, symbols]
    int64_t given;       // int64 [images, symbols], -1 where a symbol is to be drawn; or 0
    double guidance, temperature, top_p;
    int64_t top_k;
    int64_t components;  // 0 for a softmax over the levels
    int64_t mixtures;    // double [rows, ...], see Mixture
    // A linear predictor; 0 for none.
    int64_t coefficients;  // number [classes, channels, neighbours * channels + 1]
    int64_t rest;          // number [classes, ...], what follows the means in a prediction
    int64_t rest_size;
    int64_t thresholds;    // number [kinds, thresholds a kind]
    int64_t thresholds_a_kind;
    int64_t first_class;   // int64 [kinds]
    int64_t kinds;         // int64 [height, width]
    int64_t neighbours;    // int64 [neighbour_count, 2], rows and columns relative to the pixel
    int64_t neighbour_count;
    int64_t differences;   // int64 [difference_count, 2], pairs of neighbours
    int64_t difference_count;
    int64_t inputs;        // number [rows, ...], what the predictor's network reads; 0 for no network
    int64_t input_stride;
    int64_t correction;    // index of the program of that network, which corrects the parameters; -1 for none
    double unit_shift;     // added to log-scales among the inputs
    double seconds;        // after which a call returns, so that its caller can be interrupted
};

std::string layout() {
#define FIELD(name) {#name, offsetof(Walk, name)}
    return "walk " +
           fields<Walk>({FIELD(bytes), FIELD(images), FIELD(rows), FIELD(height), FIELD(width), FIELD(channels),
                         FIELD(levels), FIELD(programs), FIELD(program_count), FIELD(starts), FIELD(runs), FIELD(values), FIELD(variables),
                         FIELD(listed), FIELD(parameters), FIELD(parameter_stride), FIELD(newest), FIELD(x),
                         FIELD(given), FIELD(guidance), FIELD(temperature), FIELD(top_p), FIELD(top_k),
                         FIELD(components), FIELD(mixtures), FIELD(coefficients), FIELD(rest), FIELD(rest_size),
                         FIELD(thresholds), FIELD(thresholds_a_kind), FIELD(first_class), FIELD(kinds),
                         FIELD(neighbours), FIELD(neighbour_count), FIELD(differences), FIELD(difference_count),
                         FIELD(inputs), FIELD(input_stride), FIELD(correction), FIELD(unit_shift),
                         FIELD(seconds)});
#undef FIELD
}

template <typename T>
inline T* at(int64_t address) {
    return reinterpret_cast<T*>(address);
}

// Memory of a thread for the tables of a symbol, whole vectors each.
struct Room {
    std::vector<double> memory;
    int64_t size;
    explicit Room(int64_t levels) : memory(2 * ((levels + L - 1) / L * L)), size(memory.size() / 2) {}
    double* table(int which) { return memory.data() + which * size; }
};

inline Vector<double> counting() {
    Vector<double> v;
    for (int l = 0; l < L; l++) v[l] = l;
    return v;
}

// ---- the mixture of logistics -----------------------------------------------------------------------------------------

constexpr double LEAST_LOG_SCALE = -7.0, GREATEST_LOG_SCALE = 15.0;

// A row of `mixtures`, what is kept of a pixel from channel to channel: the posterior log-weights of the components, means
// and log-scales of the newest channel, values of the channels so far, their means from the predictor, and its prediction.
struct Mixture {
    double *log_weights, *means, *log_scales, *values, *expected, *predicted, *chosen;
    static int64_t size(int64_t components, int64_t channels) { return 3 * components + 3 * channels + 1; }
    Mixture(const Walk& walk, int64_t row) {
        const int64_t m = walk.components, c = walk.channels;
        log_weights = at<double>(walk.mixtures) + row * size(m, c);
        means = log_weights + m, log_scales = means + m;
        values = log_scales + m, expected = values + c, predicted = expected + c;
        chosen = predicted + c;  // the predictor's class of the pixel
    }
    // Whether it has probabilities at all.
    bool is_number(int64_t components) const {
        for (int64_t m = 0; m < components; m++) {
            if (!(log_weights[m] < INFINITE) || means[m] != means[m] || log_scales[m] != log_scales[m]) return false;
        }
        return true;
    }
};

inline double log_sigmoid(double x) {
    return x < 0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x));
}

// Log-probability of a level under a logistic, as heads/level_log_prob.py has it.
double level_log_prob(double level, double mean, double log_scale, double levels) {
    const double half_bin = 1.0 / (levels - 1), inverse_scale = std::exp(-log_scale);
    const double centred = 2.0 * half_bin * level - 1.0 - mean;
    const double below = log_sigmoid((centred + half_bin) * inverse_scale);
    const double above = log_sigmoid((half_bin - centred) * inverse_scale);
    if (level == 0) return below;
    if (level == levels - 1) return above;
    return below + above + std::log(-std::expm1(-2.0 * half_bin * inverse_scale));
}

// The parameters of the next channel of a pixel.
template <typename T>
void advance(const Walk& walk, int64_t row, int64_t channel, int64_t previous) {
    Mixture mixture(walk, row);
    const int64_t components = walk.components, channels = walk.channels, first_pair = channel * (channel - 1) / 2;
    const T* weights = at<T>(walk.parameters) + row * walk.parameter_stride;
    const T *means = weights + components, *log_scales = means + channels * components;
    const T* coefficients = log_scales + channels * components;
    const bool predicted = walk.coefficients != 0;
    // Not read without a predictor.
    const T* couplings = predicted ? at<T>(walk.rest) + int64_t(*mixture.chosen) * walk.rest_size : weights;
    const T* log_units = couplings + channels * (channels - 1) / 2;
    const T *error_weights = log_units + channels, *error_log_scales = error_weights + components;
    if (channel == 0) {
        for (int64_t m = 0; m < components; m++) {
            mixture.log_weights[m] = weights[m] + (predicted ? double(error_weights[m]) : 0.0);
        }
    } else {
        // Bayes' rule, up to a constant.
        for (int64_t m = 0; m < components; m++) {
            mixture.log_weights[m] +=
                level_log_prob(double(previous), mixture.means[m], mixture.log_scales[m], double(walk.levels));
        }
        mixture.values[channel - 1] = double(previous) * (2.0 / double(walk.levels - 1)) - 1.0;
    }
    double unit = 1.0, expected = 0.0;
    if (predicted) {
        expected = mixture.predicted[channel];
        for (int64_t j = 0; j < channel; j++) expected += couplings[first_pair + j] * mixture.values[j];
        mixture.expected[channel] = expected;
        unit = std::exp(double(log_units[channel]));
    }
    for (int64_t m = 0; m < components; m++) mixture.means[m] = means[channel * components + m];
    for (int64_t j = 0; j < channel; j++) {
        double shift = mixture.values[j];
        if (predicted) shift = (shift - mixture.expected[j]) / std::exp(double(log_units[j]));
        const T* pair = coefficients + (first_pair + j) * components;
        for (int64_t m = 0; m < components; m++) mixture.means[m] += std::tanh(double(pair[m])) * shift;
    }
    for (int64_t m = 0; m < components; m++) {
        double log_scale = log_scales[channel * components + m];
        if (predicted) {
            mixture.means[m] = expected + unit * mixture.means[m];
            log_scale += error_log_scales[channel * components + m];
        }
        log_scale = log_scale < LEAST_LOG_SCALE ? LEAST_LOG_SCALE : log_scale;
        mixture.log_scales[m] = log_scale > GREATEST_LOG_SCALE ? GREATEST_LOG_SCALE : log_scale;
    }
}

// Exponents below this one are raised to it, and what is below the smallest probability is computed anew where it matters.
constexpr double LEAST_EXPONENT = -600.0, LEAST_PROBABILITY = 1e-200;

// The probabilities of all levels under a mixture. Between the edges of its bin, d apart around a centre c, a logistic has
// (1 - q) t / ((1 + t) (1 + q t)), with q = exp(-d) and t = exp(d / 2 - |c|); no term cancels another, and none overflows.
void mixture_probabilities(const Mixture& mixture, int64_t components, int64_t levels, double* p) {
    double most = -INFINITE, total = 0.0, first = 0.0, last = 0.0;
    for (int64_t m = 0; m < components; m++) most = std::max(most, mixture.log_weights[m]);
    for (int64_t m = 0; m < components; m++) total += std::exp(mixture.log_weights[m] - most);
    for (int64_t k = 0; k < levels; k += L) store(p + k, Vector<double>{}, L);
    const Vector<double> lanes = counting(), least = Vector<double>{} + LEAST_EXPONENT;
    for (int64_t m = 0; m < components; m++) {
        const double weight = std::exp(mixture.log_weights[m] - most) / total;
        const double inverse_scale = std::exp(-mixture.log_scales[m]), half = inverse_scale / double(levels - 1);
        const double q = std::exp(-2.0 * half), gap = -std::expm1(-2.0 * half) * weight;
        const double start = (-1.0 - mixture.means[m]) * inverse_scale;
        for (int64_t k = 0; k < levels; k += L) {
            const Vector<double> centre = start + 2.0 * half * (lanes + double(k));
            Vector<double> exponent = half - (centre < 0 ? -centre : centre);
            exponent = exponent < least ? least : exponent;
            const Vector<double> t = exponential(exponent);
            store(p + k, load(p + k, L) + gap * t / ((1.0 + t) * (1.0 + q * t)), L);
        }
        // The outermost bins have a single edge.
        first += weight / (1.0 + std::exp(-(start + half)));
        last += weight / (1.0 + std::exp(start + 2.0 * half * double(levels - 1) - half));
    }
    p[0] = first;
    p[levels - 1] = last;
}

// Log-probabilities of all levels under the mixture of a row. A probability too small for its number can only be drawn
// where a rule flattens or compares tables; then the level is computed by logarithms.
void mixture_table(const Walk& walk, int64_t row, bool tails, double* table) {
    const Mixture mixture(walk, row);
    const int64_t components = walk.components, levels = walk.levels;
    if (!mixture.is_number(components)) {
        std::fill(table, table + levels, std::numeric_limits<double>::quiet_NaN());
        return;
    }
    mixture_probabilities(mixture, components, levels, table);
    double most = -INFINITE;
    for (int64_t m = 0; m < components; m++) most = std::max(most, mixture.log_weights[m]);
    double total = 0.0;
    for (int64_t m = 0; m < components; m++) total += std::exp(mixture.log_weights[m] - most);
    const double constant = most + std::log(total);
    const Vector<double> least = Vector<double>{} + 1e-300;
    std::vector<int64_t> tiny;
    for (int64_t k = 0; tails && k < levels; k++) {
        if (table[k] < LEAST_PROBABILITY) tiny.push_back(k);
    }
    for (int64_t k = 0; k < levels; k += L) {
        const Vector<double> p = load(table + k, L);
        store(table + k, logarithm(p < least ? least : p), L);
    }
    std::vector<double> terms(tiny.empty() ? 0 : components);
    for (int64_t k : tiny) {
        double greatest = -INFINITE, sum = 0.0;
        for (int64_t m = 0; m < components; m++) {
            terms[m] = mixture.log_weights[m] - constant +
                       level_log_prob(double(k), mixture.means[m], mixture.log_scales[m], double(levels));
            greatest = std::max(greatest, terms[m]);
        }
        for (double term : terms) sum += std::exp(term - greatest);
        table[k] = greatest > -INFINITE ? greatest + std::log(sum) : greatest;
    }
}

// ---- the linear predictor ---------------------------------------------------------------------------------------------

// The prediction of a pixel from its neighbours, and what its network reads.
template <typename T>
void predict(const Walk& walk, int64_t row, int64_t pixel_row, int64_t column) {
    const int64_t channels = walk.channels, neighbours = walk.neighbour_count, image = row % walk.images;
    const int64_t *places = at<int64_t>(walk.neighbours), *pairs = at<int64_t>(walk.differences);
    const int64_t* x = at<int64_t>(walk.x) + image * walk.height * walk.width * channels;
    Mixture mixture(walk, row);
    thread_local std::vector<double> known, exists;
    known.assign(neighbours * channels, 0.0);
    exists.assign(neighbours, 0.0);
    for (int64_t n = 0; n < neighbours; n++) {
        const int64_t r = pixel_row + places[2 * n], c = column + places[2 * n + 1];
        if (r < 0 || c < 0 || c >= walk.width) continue;
        exists[n] = 1.0;
        for (int64_t j = 0; j < channels; j++) known[n * channels + j] = double(x[(r * walk.width + c) * channels + j]);
    }
    // The activity is a whole number, so that comparing it is exact.
    double activity = 0.0;
    for (int64_t d = 0; d < walk.difference_count; d++) {
        const double *a = &known[pairs[2 * d] * channels], *b = &known[pairs[2 * d + 1] * channels];
        for (int64_t j = 0; j < channels; j++) activity += std::fabs(a[j] - b[j]);
    }
    const int64_t kind = at<int64_t>(walk.kinds)[pixel_row * walk.width + column];
    const T* thresholds = at<T>(walk.thresholds) + kind * walk.thresholds_a_kind;
    int64_t chosen = at<int64_t>(walk.first_class)[kind];
    for (int64_t t = 0; t < walk.thresholds_a_kind; t++) chosen += activity > double(thresholds[t]);
    *mixture.chosen = double(chosen);
    for (int64_t j = 0; j < channels; j++) {
        const T* coefficients = at<T>(walk.coefficients) + (chosen * channels + j) * (neighbours * channels + 1);
        double mean = 0.0;
        for (int64_t i = 0; i < neighbours * channels; i++) mean += coefficients[i] * known[i];
        mixture.predicted[j] = mean + coefficients[neighbours * channels];
    }
    if (!walk.inputs) return;
    const T* log_units = at<T>(walk.rest) + chosen * walk.rest_size + channels * (channels - 1) / 2;
    T* inputs = at<T>(walk.inputs) + row * walk.input_stride;
    const double scale = 2.0 / double(walk.levels - 1);
    for (int64_t j = 0; j < channels; j++) {
        const double inverse = std::exp(-double(log_units[j]));
        for (int64_t n = 0; n < neighbours; n++) {
            const double half = 0.5 * (known[n * channels + j] * scale - (mixture.predicted[j] + 1.0)) * inverse;
            inputs[n * channels + j] = T(half / (1.0 + std::fabs(half)) * 2.0 * exists[n]);
        }
    }
    T* after = inputs + neighbours * channels;
    for (int64_t n = 0; n < neighbours; n++) after[n] = T(exists[n]);
    for (int64_t j = 0; j < channels; j++) after[neighbours + j] = T(mixture.predicted[j]);
    for (int64_t j = 0; j < channels; j++) after[neighbours + channels + j] = T(log_units[j] + walk.unit_shift);
}

// ---- the draw ---------------------------------------------------------------------------------------------------------

constexpr double LEAST_TEMPERATURE = 1e-30, GREATEST_TEMPERATURE = 1e30, GREATEST_GUIDANCE = 1e30;
constexpr double FLAT_TEMPERATURE = 8.0;  // up to this one, a level of 1e-200 is never drawn

// Excludes levels: those that a rule leaves stay, see sampling/rule.py.
template <typename T>
void exclude(const Walk& walk, double* table) {
    const int64_t levels = walk.levels;
    thread_local std::vector<int32_t> order;
    order.resize(levels);
    std::iota(order.begin(), order.end(), 0);
    const auto likelier = [table](int32_t a, int32_t b) { return table[a] > table[b] || (table[a] == table[b] && a < b); };
    int64_t kept = levels;
    if (walk.top_k > 0 && walk.top_k < levels) {
        kept = walk.top_k;
        std::nth_element(order.begin(), order.begin() + kept, order.end(), likelier);
    }
    if (walk.top_p < 1.0) {
        std::sort(order.begin(), order.begin() + kept, likelier);
        double total = 0.0, mass = 0.0;
        for (int64_t i = 0; i < kept; i++) total += std::exp(table[order[i]] - table[order[0]]);
        int64_t left = 0;
        for (; left < kept; left++) {
            // Rounded where torch rounds, so that a mass that is just reached is reached here too.
            const T p = T(std::exp(table[order[left]] - table[order[0]]) / total);
            mass += p;
            if (left && !(T(mass) - p < T(walk.top_p))) break;
        }
        kept = left;
    }
    for (int64_t i = kept; i < levels; i++) table[order[i]] = -INFINITE;
}

// The highest score and, of equal ones, the first level. NaN anywhere makes the score NaN.
struct Best {
    double score;
    int64_t level;
};

Best highest(const double* table, const double* noise, int64_t levels) {
    Best best = {-INFINITE, 0};
    Vector<double> scores = Vector<double>{} - INFINITE, places = {}, unequal = {};
    const Vector<double> lanes = counting();
    int64_t k = 0;
    for (; k + L <= levels; k += L) {
        const Vector<double> score = load(table + k, L) + load(noise + k, L);
        // Zero, or NaN.
        unequal += load(table + k, L) == load(table + k, L) ? Vector<double>{} : Vector<double>{} + 1.0;
        places = score > scores ? lanes + double(k) : places;
        scores = score > scores ? score : scores;
    }
    bool number = true;
    for (int l = 0; l < L; l++) {
        number = number && unequal[l] == 0;
        const int64_t level = int64_t(places[l]);
        if (scores[l] > best.score || (scores[l] == best.score && level < best.level)) best = {scores[l], level};
    }
    for (; k < levels; k++) {
        number = number && table[k] == table[k];
        if (table[k] + noise[k] > best.score) best = {table[k] + noise[k], k};
    }
    if (!number) best.score = std::numeric_limits<double>::quiet_NaN();
    return best;
}

template <typename T>
void fill_table(const Walk& walk, int64_t row, double* table) {
    if (walk.components) {
        mixture_table(walk, row, walk.guidance != 1.0 || walk.temperature > FLAT_TEMPERATURE, table);
        return;
    }
    const T* logits = at<T>(walk.parameters) + row * walk.parameter_stride;
    for (int64_t k = 0; k < walk.levels; k++) table[k] = double(logits[k]);
}

// Draws a symbol of an image. Returns false where the parameters are not finite.
template <typename T>
bool draw(const Walk& walk, int64_t image, const double* noise, Room& room, int64_t* symbol) {
    const int64_t levels = walk.levels;
    double* table = room.table(0);
    fill_table<T>(walk, image, table);
    if (walk.guidance != 1.0) {
        const double scale = std::max(-GREATEST_GUIDANCE, std::min(walk.guidance, GREATEST_GUIDANCE));
        double* without = room.table(1);
        fill_table<T>(walk, image + walk.images, without);
        for (int64_t k = 0; k < levels; k++) table[k] = without[k] + scale * (table[k] - without[k]);
    }
    if (walk.temperature != 1.0 || walk.top_p < 1.0 || (walk.top_k > 0 && walk.top_k < levels)) {
        // Levels that are no numbers cannot be sorted.
        for (int64_t k = 0; k < levels; k++) {
            if (table[k] != table[k] || table[k] == INFINITE) return false;
        }
        if (walk.temperature < LEAST_TEMPERATURE) {
            const int64_t likeliest = std::max_element(table, table + levels) - table;
            for (int64_t k = 0; k < levels; k++) table[k] = k == likeliest ? table[k] : -INFINITE;
        } else if (walk.temperature != 1.0) {
            const double temperature = std::min(walk.temperature, GREATEST_TEMPERATURE);
            for (int64_t k = 0; k < levels; k++) table[k] /= temperature;
        }
        exclude<T>(walk, table);
    }
    const Best best = highest(table, noise, levels);
    *symbol = best.level;
    return std::fabs(best.score) < INFINITE;  // false for NaN
}

// ---- the walk ---------------------------------------------------------------------------------------------------------

constexpr int64_t SYMBOLS = 16;   // between two looks at the clock
constexpr int64_t SHARED = 4096;  // levels times images (and components) that justify all threads for a draw

// Where a call begins and ends, its noise, and what it found.
struct Call {
    int64_t first, last;
    const double* noise;  // of the symbol `first`
    int64_t symbol_stride, image_stride;
    std::atomic<int64_t> stop, wrong{0}, not_finite{0};
};

// One of the threads that do everything together. Either some or all of them share a work, or each does it for images of its
// own. They wait for each other only before a work that reads what another thread has written.
class Member {
  public:
    Member(int thread, int threads, Barrier* barrier) : thread(thread), threads(threads), barrier_(barrier) {}

    // act(thread, count) on each of the first `count` threads.
    template <typename Act>
    void share(int64_t count, const Act& act) {
        const int team = int(count < threads ? count : threads);
        if (written_ == BY_EACH || (written_ == BY_ONE && team > 1)) meet();
        if (thread < team) act(thread, team);
        written_ = BY_ONE;
        if (team > 1) meet();
    }

    // act(thread, count) on all threads, which read and write nothing but what belongs to their images.
    template <typename Act>
    void split(const Act& act) {
        if (written_ == BY_ONE) meet();
        act(thread, threads);
        written_ = BY_EACH;
    }

    void meet() {
        if (threads > 1) barrier_->wait(thread);
        written_ = BY_NONE;
    }

    const int thread, threads;

  private:
    Barrier* barrier_;
    enum { BY_NONE, BY_ONE, BY_EACH } written_ = BY_NONE;  // what threads have not waited for
};

// Bytes of weights that each thread may as well read for an image of its own. A thread that runs a program for some images
// reads all weights and waits for nobody; threads that share each operation read a part of them and wait after each.
constexpr int64_t BYTES_AN_IMAGE = 1 << 20;

bool is_split(const Walk& walk, const Program& program, int threads) {
    const int64_t images = walk.images / threads;
    return images > 0 && program.batch == walk.rows && program.weight_bytes <= images * BYTES_AN_IMAGE;
}

void run_program(const Walk& walk, const Program& program, const int64_t* values, Call& call, Member& member) {
    const auto run = [&](int64_t index, int64_t first, int64_t count, int thread, int threads) {
        tessella_share(at<void>(program.records), index, first, count, program.places, values, walk.bytes, &call.wrong,
                       thread, threads);
    };
    if (is_split(walk, program, member.threads)) {
        member.split([&](int thread, int threads) {
            const Share share(walk.images, thread, threads);
            for (int64_t i = 0; i < program.count; i++) {
                for (int64_t first = 0; first < walk.rows; first += walk.images) {
                    run(i, first + share.first, share.last - share.first, 0, 1);
                }
            }
        });
        return;
    }
    for (int64_t i = 0; i < program.count; i++) {
        member.share(program.threads, [&](int thread, int threads) { run(i, 0, program.batch, thread, threads); });
    }
}

// Draws, or takes, a symbol of all images that a thread has a share of.
template <typename T>
void choose(const Walk& walk, Call& call, int64_t index, Room& room, int thread, int threads) {
    const int64_t symbols = walk.height * walk.width * walk.channels, channel = index % walk.channels;
    const Share share(walk.images, thread, threads);
    int64_t* newest = at<int64_t>(at<int64_t>(walk.newest)[channel]);
    for (int64_t image = share.first; image < share.last; image++) {
        int64_t* x = at<int64_t>(walk.x) + image * symbols;
        if (walk.components) {
            const int64_t previous = channel ? x[index - 1] : 0;
            for (int64_t row = image; row < walk.rows; row += walk.images) advance<T>(walk, row, channel, previous);
        }
        int64_t symbol = walk.given ? at<int64_t>(walk.given)[image * symbols + index] : -1;
        if (symbol < 0) {
            const double* noise = call.noise + (index - call.first) * call.symbol_stride + image * call.image_stride;
            if (!draw<T>(walk, image, noise, room, &symbol)) call.not_finite = 1;
        }
        x[index] = symbol;
        for (int64_t row = image; row < walk.rows; row += walk.images) newest[row] = symbol;
    }
}

int64_t drawing_threads(const Walk& walk) {
    const int64_t work = walk.images * walk.levels * std::max<int64_t>(1, walk.components);
    return work < SHARED ? 1 : walk.images;
}

// Whether some work of a walk is split by images; then the draws are, too.
bool has_split(const Walk& walk, int threads) {
    const Program* programs = at<Program>(walk.programs);
    return std::any_of(programs, programs + walk.program_count,
                       [&](const Program& program) { return is_split(walk, program, threads); });
}

template <typename T>
void walk_along(const Walk& walk, Call& call, Member member) {
    const int64_t *starts = at<int64_t>(walk.starts), *runs = at<int64_t>(walk.runs), *values = at<int64_t>(walk.values);
    const Program* programs = at<Program>(walk.programs);
    const int64_t drawing = drawing_threads(walk);
    const bool split = has_split(walk, member.threads);
    const auto for_images = [&](const auto& act) {
        if (split) {
            member.split(act);
        } else {
            member.share(drawing, act);
        }
    };
    const auto begun = std::chrono::steady_clock::now();
    Room room(walk.levels);
    for (int64_t index = call.first; index < call.last; index++) {
        if (index > call.first && (index - call.first) % SYMBOLS == 0) {
            // The first thread decides for all, before they meet.
            if (member.thread == 0) {
                const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begun;
                if (passed.count() > walk.seconds) call.stop = index;
            }
            member.meet();
            if (call.stop == index) break;
        }
        for (int64_t run = starts[index - walk.listed]; run < starts[index - walk.listed + 1]; run++) {
            run_program(walk, programs[runs[run]], values + run * walk.variables, call, member);
        }
        if (walk.coefficients && index % walk.channels == 0) {
            const int64_t pixel = index / walk.channels;
            for_images([&](int thread, int threads) {
                const Share share(walk.images, thread, threads);
                for (int64_t image = share.first; image < share.last; image++) {
                    for (int64_t row = image; row < walk.rows; row += walk.images) {
                        predict<T>(walk, row, pixel / walk.width, pixel % walk.width);
                    }
                }
            });
            if (walk.correction >= 0) run_program(walk, programs[walk.correction], values, call, member);
        }
        for_images([&](int thread, int threads) { choose<T>(walk, call, index, room, thread, threads); });
    }
}

template <typename T>
void walk_together(const Walk& walk, Call& call, int threads) {
#ifdef _OPENMP
    if (threads > 1) {
        Barrier barrier(threads);
        bool together = true;
#pragma omp parallel num_threads(threads)
        {
            if (omp_get_num_threads() == threads) {
                walk_along<T>(walk, call, Member(omp_get_thread_num(), threads, &barrier));
            } else if (omp_get_thread_num() == 0) {
                together = false;
            }
        }
        if (together) return;
    }
#endif
    walk_along<T>(walk, call, Member(0, 1, nullptr));
}

}  // namespace

extern "C" {

const char* tessella_walk_layout() {
    static const std::string text = layout();
    return text.c_str();
}

// Doubles of a row of `mixtures`.
int64_t tessella_mixture_size(int64_t components, int64_t channels) { return Mixture::size(components, channels); }

// Draws the symbols first .. last - 1 of all images, or fewer where that takes long. `noise` belongs to the symbol `first`,
// and the noise of an image's levels is contiguous. Writes where it has stopped to `reached`. Returns 1 where a symbol was
// none of its table, plus 2 where parameters were not finite.
int64_t tessella_walk(const void* record, int64_t first, int64_t last, const void* noise, int64_t symbol_stride,
                      int64_t image_stride, int64_t threads, int64_t* reached) {
    const Walk& walk = *static_cast<const Walk*>(record);
    Call call{first, last, static_cast<const double*>(noise), symbol_stride, image_stride, {last}};
    // No more threads than some of the work takes.
    int64_t most = drawing_threads(walk);
    if (has_split(walk, int(threads))) most = threads;
    for (int64_t p = 0; p < walk.program_count; p++) most = std::max(most, at<Program>(walk.programs)[p].threads);
    const int team = int(std::min(threads, most));
    if (walk.bytes == sizeof(float)) {
        walk_together<float>(walk, call, team);
    } else {
        walk_together<double>(walk, call, team);
    }
    *reached = call.stop;
    return call.wrong + 2 * call.not_finite;
}
}
