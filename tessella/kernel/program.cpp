// Runs a program: operations on fixed memory, one after another, each shared by all threads.
//
// The operations are those of tessella/nn/stepping/operation.py, their records those of stepping/compiled.py, which compares
// both with tessella_layout() below; stepping/torch_operations.py has each of them in torch, and the two must agree to
// rounding. Everything is a matrix [batch * places, size] whose rows are contiguous, with one
// stride from image to image and one from place to place; a matrix may move along memory with a variable of the walk (a
// row, a column, a position). Weights come packed in panels of two vectors' width:
// [panels, inputs, 2 * LANES], zero beyond the last output. Where an operation takes outputs in pairs (a, b), a panel holds
// a vector of a's and the vector of their b's.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "functions.h"
#include "program.h"

namespace {

// Weights are stored as numbers of the program, or, where those are float, as the upper half of each or as int8. What a
// product reads becomes float in a register, so that a large matrix at a small batch takes a half or a quarter of the time.
enum StorageCode : int64_t { WHOLE, BFLOAT16, INT8 };

struct Op {
    int64_t operation, activation;
    int64_t size;           // of a vector of the result
    int64_t inputs;         // what a product sums over; levels of a table
    int64_t heads, groups;
    int64_t known;          // index of the variable that counts the places of an attention, or the inputs of PRODUCT
    int64_t count;          // index of the variable that counts the outputs of PRODUCT
    double epsilon;
    int64_t weight;         // the address of packed weights
    int64_t storage;        // how they are stored, a StorageCode
    int64_t scales;         // the address of the scales of their outputs, in panels; 0 where there are none
    Operand out, x, y, z;
};

std::string layout() {
#define FIELD(name) {#name, offsetof(Op, name)}
    return lists() + fields<Op>({FIELD(operation), FIELD(activation), FIELD(size), FIELD(inputs), FIELD(heads),
                                 FIELD(groups), FIELD(known), FIELD(count), FIELD(epsilon), FIELD(weight),
                                 FIELD(storage), FIELD(scales), FIELD(out), FIELD(x), FIELD(y), FIELD(z)});
#undef FIELD
}

// ---- operations ------------------------------------------------------------------------------------------------------

// What comes after a product: two vectors of sums, at outputs o and o + LANES, or, in pairs, a and b at output o.
template <typename T>
inline void finish(const Op& op, int64_t o, Vector<T> a, Vector<T> b, T* out, const T* plus, const T* residual) {
    constexpr int L = Lanes<T>::count;
    const int64_t n = op.size, left = n - o;
    if (op.activation >= GATE) {
        if (plus) a += load(plus + o, left), b += load(plus + n + o, left);
        Vector<T> result = {};
        if (op.activation == GATE) result = hyperbolic(a) * sigmoid(b);
        if (op.activation == GLU) result = a * sigmoid(b);
        if (op.activation == SWIGLU) result = silu(a) * b;
        if (residual) result += load(residual + o, left);
        store(out + o, result, left);
        return;
    }
    if (plus) a += load(plus + o, left), b += load(plus + o + L, left - L);
    if (op.activation == RELU) a = relu(a), b = relu(b);
    if (op.activation == SILU) a = silu(a), b = silu(b);
    if (op.activation == CONCAT_ELU) {
        store(out + n + o, elu(-a), left);
        if (left > L) store(out + n + o + L, elu(-b), left - L);
    }
    if (op.activation == ELU || op.activation == CONCAT_ELU) a = elu(a), b = elu(b);
    store(out + o, a, left);
    if (left > L) store(out + o + L, b, left - L);
}

// A vector of weights in the type of the program.
template <typename T>
inline Vector<T> widened(const T* from) {
    return *reinterpret_cast<const Vector<T>*>(from);
}

// Compilers turn loops over such bytes into slow code, so the instructions are named where they are known.
template <typename T>
inline Vector<T> widened(const int8_t* from) {
#if defined(__AVX512F__)
    return (Vector<T>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
    return (Vector<T>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    Vector<T> result = {};
    for (int l = 0; l < Lanes<T>::count; l++) result[l] = T(from[l]);
    return result;
#endif
}

template <typename T>
inline Vector<T> widened(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Vector<T>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
    return (Vector<T>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    uint32_t bits[Lanes<T>::count];
    for (int l = 0; l < Lanes<T>::count; l++) bits[l] = uint32_t(from[l]) << 16;
    Vector<T> result;
    std::memcpy(&result, bits, BYTES);
    return result;
#endif
}

// COUNT rows of x times one panel, whose weights are stored as W. A single row takes the inputs in turn to several sums, so that the sums of products
// need not wait for each other.
template <typename T, typename W, int COUNT>
inline void stored_tile(const Op& op, int64_t panel, int64_t row, const Matrix<T>& out, const Matrix<T>& x, const Matrix<T>& plus,
                 const Matrix<T>& residual) {
    constexpr int L = Lanes<T>::count, SPLIT = COUNT == 1 ? 4 : COUNT == 2 ? 2 : 1;
    const int64_t inputs = op.inputs;
    const W* w = reinterpret_cast<const W*>(op.weight) + panel * inputs * 2 * L;
    Vector<T> sums[SPLIT][COUNT][2] = {};
    const T *from[COUNT], *added[COUNT], *beside[COUNT];
    T* to[COUNT];
    // Divided once: a division takes as long as several products.
    const int64_t image = x.places == 1 ? row : row / x.places, place = row - image * x.places;
    x.template rows<COUNT>(image, place, from);
    int64_t k = 0;
    for (; k + SPLIT <= inputs; k += SPLIT) {
#pragma GCC unroll 4
        for (int s = 0; s < SPLIT; s++, w += 2 * L) {
            const Vector<T> u = widened<T>(w), v = widened<T>(w + L);
#pragma GCC unroll 16
            for (int r = 0; r < COUNT; r++) {
                const T factor = from[r][k + s];
                sums[s][r][0] += factor * u;
                sums[s][r][1] += factor * v;
            }
        }
    }
    for (; k < inputs; k++, w += 2 * L) {
        const Vector<T> u = widened<T>(w), v = widened<T>(w + L);
#pragma GCC unroll 16
        for (int r = 0; r < COUNT; r++) {
            sums[0][r][0] += from[r][k] * u;
            sums[0][r][1] += from[r][k] * v;
        }
    }
    const T* scale = op.scales ? reinterpret_cast<const T*>(op.scales) + panel * 2 * L : nullptr;
    const int64_t o = panel * (op.activation >= GATE ? L : 2 * L);
    out.template rows<COUNT>(image, place, to);
    plus.template rows<COUNT>(image, place, added);
    residual.template rows<COUNT>(image, place, beside);
#pragma GCC unroll 16
    for (int r = 0; r < COUNT; r++) {
        Vector<T> a = sums[0][r][0], b = sums[0][r][1];
#pragma GCC unroll 4
        for (int s = 1; s < SPLIT; s++) a += sums[s][r][0], b += sums[s][r][1];
        if (scale) a *= load(scale, L), b *= load(scale + L, L);
        finish<T>(op, o, a, b, to[r], added[r], beside[r]);
    }
}

template <typename T, int COUNT>
inline void tile(const Op& op, int64_t panel, int64_t row, const Matrix<T>& out, const Matrix<T>& x, const Matrix<T>& plus,
                 const Matrix<T>& residual) {
    if constexpr (sizeof(T) == sizeof(float)) {
        if (op.storage == INT8) return stored_tile<T, int8_t, COUNT>(op, panel, row, out, x, plus, residual);
        if (op.storage == BFLOAT16) return stored_tile<T, uint16_t, COUNT>(op, panel, row, out, x, plus, residual);
    }
    stored_tile<T, T, COUNT>(op, panel, row, out, x, plus, residual);
}

template <typename T>
void rows_of_panel(const Op& op, int64_t panel, int64_t r, int64_t end, const Matrix<T>& out, const Matrix<T>& x,
                   const Matrix<T>& plus, const Matrix<T>& residual) {
    for (; ROWS == 8 && r + 8 <= end; r += 8) tile<T, 8>(op, panel, r, out, x, plus, residual);
    // Of eight rows, two and six take longer than four and four.
    for (; ROWS == 6 && r + 6 <= end && r + 8 != end; r += 6) tile<T, 6>(op, panel, r, out, x, plus, residual);
    for (; r + 4 <= end; r += 4) tile<T, 4>(op, panel, r, out, x, plus, residual);
    for (; r + 2 <= end; r += 2) tile<T, 2>(op, panel, r, out, x, plus, residual);
    for (; r < end; r++) tile<T, 1>(op, panel, r, out, x, plus, residual);
}

// Few rows: the threads share the panels, so that each reads its part of the weights. Many: they share the rows, and go
// through all panels for a block of rows that stays in cache.
template <typename T>
void linear(const Op& op, const Run& run, int thread, int threads) {
    const Matrix<T> out(op.out, run), x(op.x, run), plus(op.y, run), residual(op.z, run);
    const int64_t width = op.activation >= GATE ? Lanes<T>::count : 2 * Lanes<T>::count;
    const int64_t panels = (op.size + width - 1) / width, tiles = (run.rows + TILE - 1) / TILE;
    if (run.rows <= BLOCK) {
        const Share share(panels * tiles, thread, threads);
        for (int64_t unit = share.first; unit < share.last; unit++) {
            const int64_t r = unit % tiles * TILE, end = run.rows < r + TILE ? run.rows : r + TILE;
            rows_of_panel<T>(op, unit / tiles, r, end, out, x, plus, residual);
        }
        return;
    }
    const Share share(tiles, thread, threads);
    const int64_t last = run.rows < share.last * TILE ? run.rows : share.last * TILE;
    for (int64_t r = share.first * TILE; r < last; r += BLOCK) {
        for (int64_t panel = 0; panel < panels; panel++) {
            rows_of_panel<T>(op, panel, r, last < r + BLOCK ? last : r + BLOCK, out, x, plus, residual);
        }
    }
}

// What comes after a product whose weights move: count sums from output o on, with what is added to them and a function.
template <typename T>
inline void conclude(const Op& op, int64_t o, int64_t count, Vector<T> sums, T* out, const T* plus) {
    if (plus) sums += load(plus + o, count);
    if (op.activation == RELU) sums = relu(sums);
    if (op.activation == SILU) sums = silu(sums);
    if (op.activation == ELU) sums = elu(sums);
    store(out + o, sums, count);
}

// COUNT rows of x times VECTORS vectors of outputs, from output o on, where the weights of an input are contiguous. Of a
// last vector that is not full, the weights are read from so far back that it ends with the outputs.
template <typename T, int COUNT, int VECTORS>
inline void by_inputs(const Op& op, int64_t o, int64_t row, const Matrix<T>& out, const Matrix<T>& x,
                      const Matrix<T>& plus, const Matrix<T>& weight) {
    constexpr int L = Lanes<T>::count;
    const int64_t left = op.size - o, back = left >= L ? 0 : o < L - left ? o : L - left;
    const T* w = weight.start + o - back;
    const T* from[COUNT];
    Vector<T> sums[COUNT][VECTORS] = {};
    for (int r = 0; r < COUNT; r++) from[r] = x.row(row + r);
    for (int64_t k = 0; k < op.inputs; k++, w += weight.stride) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            const Vector<T> u = load(w + v * L, VECTORS > 1 ? L : left + back);
#pragma GCC unroll 4
            for (int r = 0; r < COUNT; r++) sums[r][v] += from[r][k] * u;
        }
    }
    for (int r = 0; r < COUNT; r++) {
        for (int64_t i = 0; back > 0 && i < left; i++) sums[r][0][i] = sums[r][0][i + back];
        for (int v = 0; v < VECTORS; v++) {
            conclude<T>(op, o + v * L, left - v * L, sums[r][v], out.row(row + r), plus ? plus.row(row + r) : nullptr);
        }
    }
}

// COUNT rows of x times up to a vector of outputs, from output o on, where the weights of an output are contiguous.
template <typename T, int COUNT>
inline void by_outputs(const Op& op, int64_t o, int64_t row, const Matrix<T>& out, const Matrix<T>& x,
                       const Matrix<T>& plus, const Matrix<T>& weight) {
    constexpr int L = Lanes<T>::count, SPLIT = 4 / COUNT;
    const int64_t count = op.size - o < L ? op.size - o : L, inputs = op.inputs;
    const T* from[COUNT];
    Vector<T> totals[COUNT] = {};
    for (int r = 0; r < COUNT; r++) from[r] = x.row(row + r);
    for (int64_t i = 0; i < count; i++) {
        const T* w = weight.start + (o + i) * weight.place;
        Vector<T> sums[COUNT][SPLIT] = {};
        int64_t k = 0;
        for (; k + SPLIT * L <= inputs; k += SPLIT * L) {
#pragma GCC unroll 4
            for (int s = 0; s < SPLIT; s++) {
                const Vector<T> u = load(w + k + s * L, L);
#pragma GCC unroll 4
                for (int r = 0; r < COUNT; r++) sums[r][s] += u * load(from[r] + k + s * L, L);
            }
        }
        for (; k < inputs; k += L) {
            const Vector<T> u = load(w + k, inputs - k);
#pragma GCC unroll 4
            for (int r = 0; r < COUNT; r++) sums[r][0] += u * load(from[r] + k, inputs - k);
        }
        for (int r = 0; r < COUNT; r++) {
            for (int s = 1; s < SPLIT; s++) sums[r][0] += sums[r][s];
            for (int l = 0; l < L; l++) totals[r][i] += sums[r][0][l];
        }
    }
    for (int r = 0; r < COUNT; r++) {
        conclude<T>(op, o, count, totals[r], out.row(row + r), plus ? plus.row(row + r) : nullptr);
    }
}

// COUNT rows, and the outputs from o up to last.
template <typename T, int COUNT>
void outputs(const Op& op, int64_t o, int64_t last, int64_t row, const Matrix<T>& out, const Matrix<T>& x,
             const Matrix<T>& plus, const Matrix<T>& weight) {
    constexpr int L = Lanes<T>::count, VECTORS = 8 / COUNT;
    if (weight.place == 1) {
        for (; o + VECTORS * L <= last; o += VECTORS * L) by_inputs<T, COUNT, VECTORS>(op, o, row, out, x, plus, weight);
        for (; o < last; o += L) by_inputs<T, COUNT, 1>(op, o, row, out, x, plus, weight);
    } else {
        for (; o < last; o += L) by_outputs<T, COUNT>(op, o, row, out, x, plus, weight);
    }
}

// A product whose weights (z) move with the walk: they are not packed, and their strides are those from input to input and
// from output to output, of which one is 1. How many inputs and outputs there are may be values of variables.
template <typename T>
void product(const Op& listed, const Run& run, int thread, int threads) {
    constexpr int64_t WIDTH = 8 * Lanes<T>::count, HEIGHT = 4;
    Op op = listed;
    if (op.known >= 0) op.inputs = run.values[op.known];
    if (op.count >= 0) op.size = run.values[op.count];
    const Matrix<T> out(op.out, run), x(op.x, run), plus(op.y, run), weight = Matrix<T>::shared(op.z, run);
    const int64_t blocks = (op.size + WIDTH - 1) / WIDTH, tiles = (run.rows + HEIGHT - 1) / HEIGHT;
    const Share share(blocks * tiles, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t o = unit / tiles * WIDTH, last = op.size < o + WIDTH ? op.size : o + WIDTH;
        int64_t r = unit % tiles * HEIGHT;
        const int64_t end = run.rows < r + HEIGHT ? run.rows : r + HEIGHT;
        for (; r + 4 <= end; r += 4) outputs<T, 4>(op, o, last, r, out, x, plus, weight);
        for (; r + 2 <= end; r += 2) outputs<T, 2>(op, o, last, r, out, x, plus, weight);
        for (; r < end; r++) outputs<T, 1>(op, o, last, r, out, x, plus, weight);
    }
}

// A function of each number (MAP), or the sum of two matrices and then the function (ADD).
template <typename T>
void pointwise(const Op& listed, const Run& run, int thread, int threads) {
    constexpr int L = Lanes<T>::count;
    // A copy, which what is stored cannot change.
    const Op op = listed;
    const Matrix<T> out(op.out, run), x(op.x, run), y(op.y, run);
    const bool pairs = op.activation >= GATE;
    const int64_t blocks = (op.size + L - 1) / L;
    const Share share(run.rows * blocks, thread, threads);
    for (int64_t unit = share.first; unit < share.last;) {
        const int64_t r = unit / blocks, first = unit % blocks, rest = first + share.last - unit;
        const int64_t last = rest < blocks ? rest : blocks;
        unit += last - first;
        const T *from = x.row(r), *other = op.operation == ADD ? y.row(r) : nullptr;
        T* to = out.row(r);
        for (int64_t o = first * L; o < last * L; o += L) {
            const int64_t left = op.size - o;
            Vector<T> a = load(from + o, left);
            if (other) a += load(other + o, left);
            if (pairs) {
                finish<T>(op, o, a, load(from + op.size + o, left), to, nullptr, nullptr);
                continue;
            }
            if (op.activation == RELU) a = relu(a);
            if (op.activation == SILU) a = silu(a);
            if (op.activation == CONCAT_ELU) store(to + op.size + o, elu(-a), left);
            if (op.activation == ELU || op.activation == CONCAT_ELU) a = elu(a);
            store(to + o, a, left);
        }
    }
}

template <typename T>
inline T dot(const T* a, const T* b, int64_t n) {
    constexpr int L = Lanes<T>::count;
    Vector<T> sum = {};
    int64_t i = 0;
    for (; i + L <= n; i += L) sum += load(a + i, L) * load(b + i, L);
    if (i < n) sum += load(a + i, n - i) * load(b + i, n - i);
    T total = 0;
    for (int l = 0; l < L; l++) total += sum[l];
    return total;
}

// Divided by the root of the mean square, times learned scales (y).
template <typename T>
void norm(const Op& op, const Run& run, int thread, int threads) {
    const Matrix<T> out(op.out, run), x(op.x, run), scale = Matrix<T>::shared(op.y, run);
    const Share share(run.rows, thread, threads);
    for (int64_t r = share.first; r < share.last; r++) {
        const T* from = x.row(r);
        const T mean = dot(from, from, op.size) / T(op.size) + T(op.epsilon);
        const T factor = T(1) / T(__builtin_sqrt(double(mean)));
        for (int64_t i = 0; i < op.size; i++) out.row(r)[i] = from[i] * factor * scale.row(0)[i];
    }
}

// Pairs of neighbours turned by the cosines and signed sines (y) of a head's size, one set for all rows or one for each
// place.
template <typename T>
void rotate(const Op& op, const Run& run, int thread, int threads) {
    const Matrix<T> out(op.out, run), x(op.x, run), turns = Matrix<T>::shared(op.y, run);
    const int64_t size = op.size / op.heads;
    const Share share(run.rows * op.heads, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t r = unit / op.heads, offset = unit % op.heads * size;
        const T *cosines = turns.row(r), *sines = cosines + size;
        const T* from = x.row(r) + offset;
        T* to = out.row(r) + offset;
        for (int64_t i = 0; i < size; i += 2) {
            const T a = from[i], b = from[i + 1];
            to[i] = a * cosines[i] + b * sines[i];
            to[i + 1] = b * cosines[i + 1] + a * sines[i + 1];
        }
    }
}

// Attention of one query a row (x) to the first places of keys (y) and values (z), [rows, places, groups * size]. Query
// heads that share a group of keys and values stand together. How many places is the value of the variable `known`; in a
// program over several places, each looks at one more than the place before it.
template <typename T>
void attend(const Op& op, const Run& run, int thread, int threads) {
    constexpr int L = Lanes<T>::count;
    const Matrix<T> out(op.out, run), x(op.x, run), keys(op.y, run), contents(op.z, run);
    const int64_t size = op.size / op.heads, known = run.values[op.known], apart = op.groups * size;
    const int64_t sharing = op.heads / op.groups;
    const T scale = T(1) / T(__builtin_sqrt(double(size)));
    thread_local std::vector<T> room;
    room.resize(known + run.places + size + 2 * L);
    const Share share(run.rows * op.heads, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t r = unit / op.heads, head = unit % op.heads, offset = head / sharing * size;
        // Keys and values begin where those of the image's first place do.
        const int64_t place = r % run.places, first = r - place, places = known + place;
        T* scores = room.data();
        T* sum = scores + (places + L - 1) / L * L;
        const T *query = x.row(r) + head * size, *key = keys.row(first) + offset;
        const T* content = contents.row(first) + offset;
        T most = -1e30f, total = 0;
        for (int64_t p = 0; p < places; p++) {
            scores[p] = dot(query, key + p * apart, size) * scale;
            most = scores[p] > most ? scores[p] : most;
        }
        for (int64_t p = 0; p < places; p += L) {
            store(scores + p, exponential(load(scores + p, places - p) - most), places - p);
        }
        for (int64_t p = 0; p < places; p++) total += scores[p];
        for (int64_t i = 0; i < size; i += L) {
            Vector<T> seen = {};
            for (int64_t p = 0; p < places; p++) seen += scores[p] * load(content + p * apart + i, size - i);
            store(sum + i, seen, size - i);
        }
        T* to = out.row(r) + head * size;
        for (int64_t i = 0; i < size; i++) to[i] = places ? sum[i] / total : T(0);
    }
}

// Rows of a table (y) of `inputs` levels, chosen by symbols (x, int64, one a row), are added to what is there.
template <typename T>
void lookup(const Op& op, const Run& run, int thread, int threads) {
    const Matrix<T> out(op.out, run), table = Matrix<T>::shared(op.y, run);
    const int64_t* symbols = reinterpret_cast<const int64_t*>(op.x.address) + run.image * run.places;
    const Share share(run.rows, thread, threads);
    for (int64_t r = share.first; r < share.last; r++) {
        if (symbols[r] < 0 || symbols[r] >= op.inputs) {
            *run.wrong = 1;
            continue;
        }
        const T* from = table.row(symbols[r]);
        for (int64_t i = 0; i < op.size; i++) out.row(r)[i] += from[i];
    }
}

// An LSTM cell: gates (x) in the order output, forget, input, content; cell states (y) are renewed in place.
template <typename T>
void cell(const Op& op, const Run& run, int thread, int threads) {
    constexpr int L = Lanes<T>::count;
    const Matrix<T> out(op.out, run), x(op.x, run), cells(op.y, run);
    const int64_t n = op.size, blocks = (n + L - 1) / L;
    const Share share(run.rows * blocks, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t r = unit / blocks, o = unit % blocks * L, left = n - o;
        const T* gates = x.row(r) + o;
        const Vector<T> emit = sigmoid(load(gates, left)), forget = sigmoid(load(gates + n, left));
        const Vector<T> write = sigmoid(load(gates + 2 * n, left)), content = hyperbolic(load(gates + 3 * n, left));
        const Vector<T> state = forget * load(cells.row(r) + o, left) + write * content;
        store(cells.row(r) + o, state, left);
        store(out.row(r) + o, emit * hyperbolic(state), left);
    }
}

template <typename T>
void act(const Op& op, const Run& run, int thread, int threads) {
    switch (op.operation) {
        case LINEAR: return linear<T>(op, run, thread, threads);
        case MAP:
        case ADD: return pointwise<T>(op, run, thread, threads);
        case NORM: return norm<T>(op, run, thread, threads);
        case ROTATE: return rotate<T>(op, run, thread, threads);
        case ATTEND: return attend<T>(op, run, thread, threads);
        case LOOKUP: return lookup<T>(op, run, thread, threads);
        case CELL: return cell<T>(op, run, thread, threads);
        case PRODUCT: return product<T>(op, run, thread, threads);
    }
}

template <typename T>
void all(const Op* ops, int64_t count, const Run& run, int threads) {
    run_all(ops, count, threads, [&](const Op& op, int thread, int all) { act<T>(op, run, thread, all); });
}

}  // namespace

extern "C" {

int64_t tessella_record_bytes() { return sizeof(Op); }

// The operations, activations and records of this library, for its caller to compare.
const char* tessella_layout() {
    static const std::string text = layout();
    return text.c_str();
}

// Of the vectors in which weights are packed.
int64_t tessella_lane_bytes() { return BYTES; }

// A thread's share of the operation `index` on `count` images from `first` on, for walk.cpp; the other arguments are those of
// tessella_run. Sets `wrong` where a symbol was none of its table.
void tessella_share(const void* ops, int64_t index, int64_t first, int64_t count, int64_t places, const int64_t* values,
                    int64_t bytes, std::atomic<int64_t>* wrong, int thread, int threads) {
    const Run run = {count * places, places, values, wrong, first};
    const Op& op = static_cast<const Op*>(ops)[index];
    if (bytes == sizeof(float)) {
        act<float>(op, run, thread, threads);
    } else {
        act<double>(op, run, thread, threads);
    }
}

// count operations on batch * places rows; a value for each variable; bytes of a number (4 or 8). Returns 1 where a
// symbol was none of its table, else 0.
int64_t tessella_run(const void* ops, int64_t count, int64_t batch, int64_t places, const int64_t* values, int64_t threads,
                  int64_t bytes) {
    std::atomic<int64_t> wrong{0};
    const Run run = {batch * places, places, values, &wrong};
    const Op* first = static_cast<const Op*>(ops);
    if (bytes == sizeof(float)) {
        all<float>(first, count, run, int(threads));
    } else {
        all<double>(first, count, run, int(threads));
    }
    return wrong;
}
}
