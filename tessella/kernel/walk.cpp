// Walks along a grid: before each symbol the programs that are due, and then the symbol itself, drawn from what they made.
//
// tessella/sampling/kernel_walk.py writes the records and compares them with tessella_walk_layout() below. What is drawn
// follows sampling/walk.py and rule.py, to rounding, from the tables of tables.h.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tables.h"

extern "C" void tessella_share(const void* ops, int64_t index, int64_t first, int64_t count, int64_t places,
                               const int64_t* values, int64_t bytes, std::atomic<int64_t>* wrong, int thread, int threads);

namespace {

// ---- the draw ---------------------------------------------------------------------------------------------------------

constexpr double LEAST_TEMPERATURE = 1e-30, GREATEST_TEMPERATURE = 1e30, GREATEST_GUIDANCE = 1e30;

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
        const bool averages = walk.sets > 1 && !walk.components;
        const int64_t previous = index ? x[index - 1] : -1;
        for (int64_t row = image; row < walk.rows; row += walk.images) {
            if (walk.components) advance<T>(walk, row, channel, previous);
            if (averages) Average<T>(walk, row).begin_symbol(index == 0);
        }
        int64_t symbol = walk.given ? at<int64_t>(walk.given)[image * symbols + index] : -1;
        if (symbol < 0) {
            const double* noise = call.noise + (index - call.first) * call.symbol_stride + image * call.image_stride;
            if (!draw<T>(walk, image, noise, room, &symbol)) call.not_finite = 1;
        }
        x[index] = symbol;
        for (int64_t row = image; row < walk.rows; row += walk.images) {
            newest[row] = symbol;
            if (averages) Average<T>(walk, row).end_symbol(symbol);
        }
    }
}

int64_t drawing_threads(const Walk& walk) {
    const int64_t work = walk.images * walk.levels * std::max(walk.sets, walk.components);
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
