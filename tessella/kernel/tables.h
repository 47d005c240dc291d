// What a walk draws from: the tables of levels that heads make of parameters, and the record of a walk.
//
// The tables follow heads/logistic_mixture.py, nn/linear_predictor.py and, where the distributions of several sets of
// parameters are averaged, models/made.py, to rounding: here all of it is in double precision. Log-probabilities may lack a
// constant, which changes no argmax.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "functions.h"

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
    int64_t sets;        // of parameters, one after the other, whose distributions are averaged
    int64_t averages;    // double [rows, 2 * sets], see Average
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
                         FIELD(components), FIELD(mixtures), FIELD(sets), FIELD(averages), FIELD(coefficients),
                         FIELD(rest), FIELD(rest_size),
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

// The parameters of a pixel's mixture in the memory of a row. The vectors of a set follow each other: the weights of its
// components, the means and the log-scales of all channels, and the coefficients of all pairs of channels.
template <typename T>
struct MixtureParameters {
    const T* start;
    int64_t channels, per_set, set_size;
    MixtureParameters(const Walk& walk, int64_t row)
        : start(at<T>(walk.parameters) + row * walk.parameter_stride), channels(walk.channels),
          per_set(walk.components / walk.sets),
          set_size(per_set * (1 + 2 * channels + channels * (channels - 1) / 2)) {}
    double at_vector(int64_t vector, int64_t m) const {
        return double(start[m / per_set * set_size + vector * per_set + m % per_set]);
    }
    double weight(int64_t m) const { return at_vector(0, m); }
    double mean(int64_t channel, int64_t m) const { return at_vector(1 + channel, m); }
    double log_scale(int64_t channel, int64_t m) const { return at_vector(1 + channels + channel, m); }
    double coefficient(int64_t pair, int64_t m) const { return at_vector(1 + 2 * channels + pair, m); }
};

inline double log_sum(const double* terms, int64_t count) {
    const double most = *std::max_element(terms, terms + count);
    // All of them may be impossible; NaN stays NaN.
    if (most == -INFINITE) return most;
    double total = 0.0;
    for (int64_t i = 0; i < count; i++) total += std::exp(terms[i] - most);
    return most + std::log(total);
}

// Bayes' rule: the components' log-weights once a symbol of the newest channel is known, up to a constant.
inline void learn(const Walk& walk, const Mixture& mixture, int64_t symbol) {
    for (int64_t m = 0; m < walk.components; m++) {
        mixture.log_weights[m] += level_log_prob(double(symbol), mixture.means[m], mixture.log_scales[m], double(walk.levels));
    }
}

// Of several sets, the components of a new pixel share the weight that the symbols so far have left to their set.
template <typename T>
void begin_pixel_of_sets(const Walk& walk, const Mixture& mixture, const MixtureParameters<T>& parameters, int64_t previous) {
    const int64_t count = parameters.per_set;
    if (previous >= 0) learn(walk, mixture, previous);
    const double total = previous < 0 ? 0.0 : log_sum(mixture.log_weights, walk.components);
    for (int64_t first = 0; first < walk.components; first += count) {
        double* log_weights = mixture.log_weights + first;
        const double of_set = previous < 0 ? 0.0 : log_sum(log_weights, count) - total;
        for (int64_t m = 0; m < count; m++) log_weights[m] = parameters.weight(first + m);
        const double own = log_sum(log_weights, count);
        for (int64_t m = 0; m < count; m++) log_weights[m] += of_set - own;
    }
}

// The parameters of the next channel of a pixel, once the symbol before it is known; -1 for none.
template <typename T>
void advance(const Walk& walk, int64_t row, int64_t channel, int64_t previous) {
    Mixture mixture(walk, row);
    const MixtureParameters<T> parameters(walk, row);
    const int64_t components = walk.components, channels = walk.channels, first_pair = channel * (channel - 1) / 2;
    const bool predicted = walk.coefficients != 0;
    // Not read without a predictor.
    const T* couplings = predicted ? at<T>(walk.rest) + int64_t(*mixture.chosen) * walk.rest_size : parameters.start;
    const T* log_units = couplings + channels * (channels - 1) / 2;
    const T *error_weights = log_units + channels, *error_log_scales = error_weights + components;
    if (channel == 0 && walk.sets > 1) {
        begin_pixel_of_sets(walk, mixture, parameters, previous);
    } else if (channel == 0) {
        for (int64_t m = 0; m < components; m++) {
            mixture.log_weights[m] = parameters.weight(m) + (predicted ? double(error_weights[m]) : 0.0);
        }
    } else {
        learn(walk, mixture, previous);
        mixture.values[channel - 1] = double(previous) * (2.0 / double(walk.levels - 1)) - 1.0;
    }
    double unit = 1.0, expected = 0.0;
    if (predicted) {
        expected = mixture.predicted[channel];
        for (int64_t j = 0; j < channel; j++) expected += couplings[first_pair + j] * mixture.values[j];
        mixture.expected[channel] = expected;
        unit = std::exp(double(log_units[channel]));
    }
    for (int64_t m = 0; m < components; m++) mixture.means[m] = parameters.mean(channel, m);
    for (int64_t j = 0; j < channel; j++) {
        double shift = mixture.values[j];
        if (predicted) shift = (shift - mixture.expected[j]) / std::exp(double(log_units[j]));
        for (int64_t m = 0; m < components; m++) {
            mixture.means[m] += std::tanh(parameters.coefficient(first_pair + j, m)) * shift;
        }
    }
    for (int64_t m = 0; m < components; m++) {
        double log_scale = parameters.log_scale(channel, m);
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

// ---- tables -----------------------------------------------------------------------------------------------------------

// What is kept of a row where the softmaxes of several sets are averaged: the log-weight of each set given the symbols so
// far, and the logarithm of the sum of exponentials of its newest logits.
template <typename T>
struct Average {
    double *log_weights, *log_totals;
    const T* logits;
    int64_t sets, levels;
    Average(const Walk& walk, int64_t row)
        : log_weights(at<double>(walk.averages) + row * 2 * walk.sets), log_totals(log_weights + walk.sets),
          logits(at<T>(walk.parameters) + row * walk.parameter_stride), sets(walk.sets), levels(walk.levels) {}

    double log_prob(int64_t set, int64_t level) const { return double(logits[set * levels + level]) - log_totals[set]; }

    void begin_symbol(bool first_of_all) const {
        for (int64_t s = 0; s < sets; s++) {
            const T* own = logits + s * levels;
            const double most = double(*std::max_element(own, own + levels));
            double total = 0.0;
            for (int64_t k = 0; k < levels; k++) total += std::exp(double(own[k]) - most);
            log_totals[s] = most + std::log(total);
            if (first_of_all) log_weights[s] = -std::log(double(sets));
        }
    }

    void fill(double* table, double* terms) const {
        for (int64_t k = 0; k < levels; k++) {
            for (int64_t s = 0; s < sets; s++) terms[s] = log_weights[s] + log_prob(s, k);
            table[k] = log_sum(terms, sets);
        }
    }

    // Bayes' rule, once the symbol is known.
    void end_symbol(int64_t symbol) const {
        for (int64_t s = 0; s < sets; s++) log_weights[s] += log_prob(s, symbol);
        const double total = log_sum(log_weights, sets);
        for (int64_t s = 0; s < sets; s++) log_weights[s] -= total;
    }
};

constexpr double FLAT_TEMPERATURE = 8.0;  // up to this one, a level of 1e-200 is never drawn

template <typename T>
void fill_table(const Walk& walk, int64_t row, double* table) {
    if (walk.components) {
        mixture_table(walk, row, walk.guidance != 1.0 || walk.temperature > FLAT_TEMPERATURE, table);
        return;
    }
    if (walk.sets > 1) {
        thread_local std::vector<double> terms;
        terms.resize(walk.sets);
        Average<T>(walk, row).fill(table, terms.data());
        return;
    }
    const T* logits = at<T>(walk.parameters) + row * walk.parameter_stride;
    for (int64_t k = 0; k < walk.levels; k++) table[k] = double(logits[k]);
}

}  // namespace
