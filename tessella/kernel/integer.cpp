// Runs a program of integers: the operations of program.cpp by the arithmetic of docs/arithmetic.md, to the bit.
//
// Memory holds int32 in units of 2^-16, at most LIMIT in size; tables hold int32, symbols int64. Nothing here is
// floating point, so that every processor, instruction set and number of threads gives the same results. The records are
// those of nn/integer/compiled_integers.py, which compares them with tessella_integer_layout() below.
//
// A product takes its inputs as int16 in pairs: one instruction multiplies both by their weights and adds the products.
// So weights come packed as [panels, pairs, 2 * LANES, 2], zero beyond the last input and output. Sums of products fit into
// 32 bits by construction of the weights. Where 64 bits are needed, a vector of int32 becomes two of int64: its even lanes and
// its odd ones.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "program.h"

namespace {

struct Op {
    int64_t operation, activation;
    int64_t size;      // of a vector of the result
    int64_t inputs;    // what a product sums over; levels of a table
    int64_t heads, groups;
    int64_t known;     // index of the variable that counts the places of an attention
    int64_t shift;     // of the inputs of a product, in bits
    int64_t constant;  // of a norm, epsilon in units of 2^-44; of an attention, the scale of scores in units of 2^-16
    int64_t weight;    // the address of packed weights
    int64_t shifts;    // the address of the shifts of the outputs of a product, int32
    Operand out, x, y, z;
};

std::string layout() {
#define FIELD(name) {#name, offsetof(Op, name)}
    return lists() + fields<Op>({FIELD(operation), FIELD(activation), FIELD(size), FIELD(inputs), FIELD(heads),
                                 FIELD(groups), FIELD(known), FIELD(shift), FIELD(constant), FIELD(weight),
                                 FIELD(shifts), FIELD(out), FIELD(x), FIELD(y), FIELD(z)});
#undef FIELD
}

// What all operations of a run share, and the tables of functions.
struct IntegerRun : Run {
    const int32_t* sigmoids;      // SIGMOID, in units of 2^-15
    const int32_t* exponentials;  // EXP, in units of 2^-16
};

typedef Vector<int32_t> Ints;
typedef int64_t Longs __attribute__((vector_size(BYTES), aligned(8), may_alias));
typedef uint64_t Bits __attribute__((vector_size(BYTES), aligned(8), may_alias));
typedef int16_t Shorts __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
constexpr int L = Lanes<int32_t>::count;
constexpr int32_t LIMIT = (1 << 30) - 1, INPUT_LIMIT = 8191;
constexpr int32_t FUNCTION_LIMIT = 1 << 20;  // beyond it, functions do not change

// ---- vectors ---------------------------------------------------------------------------------------------------------

inline Ints all(int32_t value) { return Ints{} + value; }

template <typename V>
inline V least(V a, V b) {
    return a < b ? a : b;
}

template <typename V>
inline V most(V a, V b) {
    return a > b ? a : b;
}

inline Ints clamp(Ints a, int32_t limit) { return most(least(a, all(limit)), all(-limit)); }

inline Ints rounded(Ints a, int shift) { return (a + (1 << shift >> 1)) >> shift; }

inline int64_t clamp(int64_t a, int64_t limit) { return a < -limit ? -limit : a > limit ? limit : a; }

inline int64_t rounded(int64_t a, int64_t shift) { return (a + (int64_t(1) << shift >> 1)) >> shift; }

// Each lane of sums, and to it the products of both int16 of x with those of w.
inline Ints add_pairs(Ints sums, Ints x, Ints w) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)x, (__m512i)w);
#elif defined(__AVX512BW__)
    return sums + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return sums + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__SSE2__) && !defined(__AVX__)
    return sums + (Ints)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
    return sums + ((x << 16) >> 16) * ((w << 16) >> 16) + (x >> 16) * (w >> 16);
#endif
}

// Makes the compiler hold a in a register: it would load weights anew for every row.
inline void hold(Ints& a) {
#if defined(__AVX512F__)
    asm("" : "+v"(a));
#elif defined(__SSE2__)
    asm("" : "+x"(a));
#endif
}

inline Longs even_products(Ints a, Ints b) {
#if defined(__AVX512F__)
    return (Longs)_mm512_mul_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Longs)_mm256_mul_epi32((__m256i)a, (__m256i)b);
#elif defined(__SSE4_1__) && !defined(__AVX__)
    return (Longs)_mm_mul_epi32((__m128i)a, (__m128i)b);
#else
    return (((Longs)a << 32) >> 32) * (((Longs)b << 32) >> 32);
#endif
}

// The odd lanes, where even ones are read.
inline Ints odd(Ints a) { return (Ints)((Bits)a >> 32); }

inline Longs odd_products(Ints a, Ints b) { return even_products(odd(a), odd(b)); }

// The lower halves of even and odd lanes.
inline Ints join(Bits even, Bits odd) { return (Ints)((even & 0xffffffff) | (odd << 32)); }

// rounded(a * b, shift) where it fits into 32 bits: of those, a logical shift gives the same as an arithmetic one.
inline Ints rounded_product(Ints a, Ints b, int shift) {
    const int64_t half = int64_t(1) << (shift - 1);
    return join((Bits)(even_products(a, b) + half) >> shift, (Bits)(odd_products(a, b) + half) >> shift);
}

// rounded(a, 16) of even and odd lanes, limited to 32 bits.
inline Ints limited(Longs even, Longs odd) {
    const Longs high = Longs{} + (int64_t(INT32_MAX) << 16), half = Longs{} + (1 << 15);
    even = most(least(even, high), -high) + half;
    odd = most(least(odd, high), -high) + half;
    return join((Bits)even >> 16, (Bits)odd >> 16);
}

inline Ints limited_product(Ints a, Ints b) { return limited(even_products(a, b), odd_products(a, b)); }

inline int64_t total(Longs a) {
    int64_t sum = 0;
    for (int l = 0; l < L / 2; l++) sum += a[l];
    return sum;
}

inline Ints gather(const int32_t* table, Ints index) {
#if defined(__AVX512F__)
    return (Ints)_mm512_i32gather_epi32((__m512i)index, table, 4);
#elif defined(__AVX2__)
    return (Ints)_mm256_i32gather_epi32(table, (__m256i)index, 4);
#else
    Ints values = {};
    for (int l = 0; l < L; l++) values[l] = table[index[l]];
    return values;
#endif
}

// ---- functions -------------------------------------------------------------------------------------------------------

inline Ints sigmoid(Ints x, const IntegerRun& run) {
    const Ints t = clamp(x, FUNCTION_LIMIT), j = (t + 128) >> 8, r = t - (j << 8);
    const Ints s = gather(run.sigmoids, j + (FUNCTION_LIMIT >> 8));
    return s + rounded(((s * (32768 - s)) >> 15) * r, 16);
}

inline Ints hyperbolic(Ints x, const IntegerRun& run) {
    return (sigmoid(clamp(x, LIMIT) << 1, run) << 1) - 32768;
}

// Of n >= 0. The table is zero at its end, so that larger n give zero.
inline Ints decay(Ints n, const IntegerRun& run) {
    n = least(n, all(FUNCTION_LIMIT));
    const Ints j = (n + 128) >> 8, r = n - (j << 8), e = gather(run.exponentials, j);
    return e - rounded(e * r, 16);
}

inline Ints silu(Ints x, const IntegerRun& run) { return rounded_product(x, sigmoid(x, run), 15); }

inline Ints elu(Ints x, const IntegerRun& run) { return x < 0 ? decay(most(-x, Ints{}), run) - 65536 : x; }

// The activations whose result is as long as x.
inline Ints activate(int64_t activation, Ints x, const IntegerRun& run) {
    switch (activation) {
        case RELU: return most(x, Ints{});
        case SILU: return silu(x, run);
        case ELU:
        case CONCAT_ELU: return elu(x, run);
        default: return x;
    }
}

// Those of pairs; within 32 bits, beyond which a result is LIMIT in any case.
inline Ints activate_pairs(int64_t activation, Ints a, Ints b, const IntegerRun& run) {
    switch (activation) {
        case GATE: return rounded(hyperbolic(a, run) * sigmoid(b, run), 14);
        case GLU: return rounded_product(a, sigmoid(b, run), 15);
        default: return limited_product(silu(a, run), b);
    }
}

// ---- operations ------------------------------------------------------------------------------------------------------

typedef Matrix<int32_t> Numbers;

// An activation without pairs of what belongs at output o, and its result; both are within LIMIT.
inline void put(const Op& op, const IntegerRun& run, int64_t o, Ints x, int32_t* out) {
    const int64_t n = op.size;
    if (op.activation == CONCAT_ELU) store(out + n + o, elu(-x, run), n - o);
    store(out + o, activate(op.activation, x, run), n - o);
}

// The same of pairs. The sum with a residual is formed so that it fits into 32 bits.
inline void put_pairs(const Op& op, const IntegerRun& run, int64_t o, Ints a, Ints b, int32_t* out,
                      const int32_t* residual) {
    const Ints base = residual ? load(residual + o, op.size - o) : Ints{};
    const Ints result = activate_pairs(op.activation, a, b, run);
    store(out + o, base + most(least(result, LIMIT - base), -LIMIT - base), op.size - o);
}

// What comes after a product, for `count` rows of one panel. Sums are two vectors a row: at outputs o and o + L, or, in
// pairs, a and b at output o.
__attribute__((noinline)) void finish(const Op& op, const IntegerRun& run, int64_t panel, int64_t row, int count,
                                      const Ints (*sums)[2], const Numbers& out, const Numbers& plus,
                                      const Numbers& residual) {
    const bool paired = op.activation >= GATE;
    const int64_t o = panel * (paired ? L : 2 * L), left = op.size - o;
    // Where the second vector belongs, and how many of its numbers.
    const int64_t second = paired ? op.size + o : o + L, second_left = paired ? left : left - L;
    const int32_t* shifts = reinterpret_cast<const int32_t*>(op.shifts);
    const Ints shift = load(shifts + o, left);
    const Ints second_shift = second_left > 0 ? load(shifts + second, second_left) : Ints{};
    const Ints half = (all(1) << shift) >> 1, second_half = (all(1) << second_shift) >> 1;
    for (int r = 0; r < count; r++) {
        Ints a = (sums[r][0] + half) >> shift, b = (sums[r][1] + second_half) >> second_shift;
        if (plus) {
            const int32_t* from = plus.row(row + r);
            a += load(from + o, left);
            if (second_left > 0) b += load(from + second, second_left);
        }
        a = clamp(a, LIMIT), b = clamp(b, LIMIT);
        int32_t* to = out.row(row + r);
        if (paired) {
            put_pairs(op, run, o, a, b, to, residual ? residual.row(row + r) : nullptr);
        } else {
            put(op, run, o, a, to);
            if (second_left > 0) put(op, run, second, b, to);
        }
    }
}

// COUNT rows of pairs of inputs times one panel. A single row takes the pairs in turn to several sums, so that the sums of
// products need not wait for each other.
template <int COUNT>
inline void tile(const Op& op, const IntegerRun& run, int64_t panel, int64_t row, const int32_t* x, int64_t apart,
                 const Numbers& out, const Numbers& plus, const Numbers& residual) {
    constexpr int SPLIT = COUNT == 1 ? 4 : COUNT == 2 ? 2 : 1;
    const int64_t pairs = (op.inputs + 1) / 2;
    const int32_t* w = reinterpret_cast<const int32_t*>(op.weight) + panel * pairs * 2 * L;
    Ints sums[SPLIT][COUNT][2] = {};
    int64_t k = 0;
    for (; k + SPLIT <= pairs; k += SPLIT) {
#pragma GCC unroll 4
        for (int s = 0; s < SPLIT; s++, w += 2 * L) {
            Ints u = *reinterpret_cast<const Ints*>(w), v = *reinterpret_cast<const Ints*>(w + L);
            if (COUNT > 1) hold(u), hold(v);
#pragma GCC unroll 16
            for (int r = 0; r < COUNT; r++) {
                const Ints both = all(x[r * apart + k + s]);
                sums[s][r][0] = add_pairs(sums[s][r][0], both, u);
                sums[s][r][1] = add_pairs(sums[s][r][1], both, v);
            }
        }
    }
    for (; k < pairs; k++, w += 2 * L) {
        const Ints u = *reinterpret_cast<const Ints*>(w), v = *reinterpret_cast<const Ints*>(w + L);
#pragma GCC unroll 16
        for (int r = 0; r < COUNT; r++) {
            const Ints both = all(x[r * apart + k]);
            sums[0][r][0] = add_pairs(sums[0][r][0], both, u);
            sums[0][r][1] = add_pairs(sums[0][r][1], both, v);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < COUNT; r++) {
#pragma GCC unroll 4
        for (int s = 1; s < SPLIT; s++) sums[0][r][0] += sums[s][r][0], sums[0][r][1] += sums[s][r][1];
    }
    finish(op, run, panel, row, COUNT, sums[0], out, plus, residual);
}

// Up to BLOCK rows as inputs of products: int16, each row filled up with zeros to whole vectors.
class Inputs {
  public:
    Inputs(const Op& op, const IntegerRun& run)
        : x_(op.x, run), inputs_(op.inputs), shift_(int(op.shift)), apart_((op.inputs + L - 1) / L * L / 2) {
        thread_local std::vector<int32_t> room;
        if (int64_t(room.size()) < BLOCK * apart_) room.resize(BLOCK * apart_);
        start_ = room.data();
    }

    // In pairs, with `apart` from row to row.
    const int32_t* row(int64_t index) const { return start_ + index * apart_; }

    int64_t apart() const { return apart_; }

    // Row r of x becomes row `index`.
    void convert(int64_t r, int64_t index) const {
        const int32_t* from = x_.row(r);
        int16_t* to = reinterpret_cast<int16_t*>(start_ + index * apart_);
        for (int64_t i = 0; i < inputs_; i += L) {
            const Ints x = clamp(rounded(load(from + i, inputs_ - i), shift_), INPUT_LIMIT);
            *reinterpret_cast<Shorts*>(to + i) = __builtin_convertvector(x, Shorts);
        }
    }

  private:
    const Numbers x_;
    const int64_t inputs_;
    const int shift_;
    const int64_t apart_;
    int32_t* start_;
};

// Rows [r, end) times one panel; the inputs of row r are row `index` of x.
void rows_of_panel(const Op& op, const IntegerRun& run, int64_t panel, int64_t r, int64_t end, const Inputs& x,
                   int64_t index, const Numbers& out, const Numbers& plus, const Numbers& residual) {
    const int64_t start = r - index, apart = x.apart();
#define TILES(COUNT) \
    for (; r + COUNT <= end; r += COUNT) tile<COUNT>(op, run, panel, r, x.row(r - start), apart, out, plus, residual)
    if (ROWS == 8) TILES(8);
    TILES(4);
    TILES(2);
    TILES(1);
#undef TILES
}

// Shared by the threads as in program.cpp. Each thread converts the inputs of the rows that it meets.
void linear(const Op& op, const IntegerRun& run, int thread, int threads) {
    const Numbers out(op.out, run), plus(op.y, run), residual(op.z, run);
    const Inputs x(op, run);
    const int64_t width = op.activation >= GATE ? L : 2 * L;
    const int64_t panels = (op.size + width - 1) / width, tiles = (run.rows + TILE - 1) / TILE;
    if (run.rows <= BLOCK) {
        const Share share(panels * tiles, thread, threads);
        for (int64_t unit = share.first; unit < share.last; unit++) {
            const int64_t r = unit % tiles * TILE, end = run.rows < r + TILE ? run.rows : r + TILE;
            for (int64_t i = r; unit < share.first + tiles && i < end; i++) x.convert(i, i);
            rows_of_panel(op, run, unit / tiles, r, end, x, r, out, plus, residual);
        }
        return;
    }
    const Share share(tiles, thread, threads);
    const int64_t last = run.rows < share.last * TILE ? run.rows : share.last * TILE;
    for (int64_t r = share.first * TILE; r < last; r += BLOCK) {
        const int64_t end = last < r + BLOCK ? last : r + BLOCK;
        for (int64_t i = r; i < end; i++) x.convert(i, i - r);
        for (int64_t panel = 0; panel < panels; panel++) {
            rows_of_panel(op, run, panel, r, end, x, 0, out, plus, residual);
        }
    }
}

// A function of each number (MAP), or the sum of two matrices and then the function (ADD).
void pointwise(const Op& op, const IntegerRun& run, int thread, int threads) {
    const Numbers out(op.out, run), x(op.x, run), y(op.y, run);
    const int64_t blocks = (op.size + L - 1) / L;
    const Share share(run.rows * blocks, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t r = unit / blocks, o = unit % blocks * L, left = op.size - o;
        Ints a = load(x.row(r) + o, left);
        if (op.operation == ADD) a = clamp(a + load(y.row(r) + o, left), LIMIT);
        if (op.activation >= GATE) {
            put_pairs(op, run, o, a, load(x.row(r) + op.size + o, left), out.row(r), nullptr);
        } else {
            put(op, run, o, a, out.row(r));
        }
    }
}

// The square root of a >= 0, rounded down, bit by bit.
inline int64_t root(uint64_t a) {
    uint64_t result = 0;
    const int first = a ? (63 - __builtin_clzll(a)) / 2 : 0;
    for (uint64_t bit = uint64_t(1) << first; bit; bit >>= 1) {
        if ((result + bit) * (result + bit) <= a) result += bit;
    }
    return int64_t(result);
}

// Divided by the root of the mean square, times learned scales (y).
void norm(const Op& op, const IntegerRun& run, int thread, int threads) {
    const Numbers out(op.out, run), x(op.x, run), scale(op.y, run);
    const int64_t n = op.size;
    const int32_t* scales = scale.row(0);
    const Share share(run.rows, thread, threads);
    for (int64_t r = share.first; r < share.last; r++) {
        const int32_t* from = x.row(r);
        int32_t* to = out.row(r);
        int32_t largest = 0;
        for (int64_t i = 0; i < n; i++) {
            const int32_t size = from[i] < 0 ? -from[i] : from[i];
            largest = size > largest ? size : largest;
        }
        int shift = 0;
        while (largest >> (15 + shift)) shift++;
        Longs squares = {};
        for (int64_t i = 0; i < n; i += L) {
            const Ints part = rounded(load(from + i, n - i), shift);
            squares += even_products(part, part) + odd_products(part, part);
        }
        const int64_t mean = (total(squares) << 12) / n + (op.constant >> (2 * shift)), exact = root(uint64_t(mean));
        const int64_t divisor = exact > 1 ? exact : 1, factor = ((int64_t(1) << 36) + divisor / 2) / divisor;
        for (int64_t i = 0; i < n && factor <= INT32_MAX; i += L) {
            // Units of 2^-16 below the root of n, so that they fit into 32 bits.
            const Ints unit = rounded_product(rounded(load(from + i, n - i), shift), all(int32_t(factor)), 14);
            store(to + i, clamp(limited_product(unit, load(scales + i, n - i)), LIMIT), n - i);
        }
        for (int64_t i = 0; i < n && factor > INT32_MAX; i++) {
            const int64_t unit = rounded(rounded(int64_t(from[i]), shift) * factor, 14);
            to[i] = int32_t(clamp(rounded(unit * scales[i], 16), LIMIT));
        }
    }
}

// Pairs of neighbours, an even lane and an odd one, turned by the cosines and signed sines (y) of a head's size.
void rotate(const Op& op, const IntegerRun& run, int thread, int threads) {
    const Numbers out(op.out, run), x(op.x, run), turns(op.y, run);
    const int64_t size = op.size / op.heads;
    const int32_t *cosines = turns.row(0), *sines = cosines + size;
    const Share share(run.rows * op.heads, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t r = unit / op.heads, offset = unit % op.heads * size;
        const int32_t* from = x.row(r) + offset;
        int32_t* to = out.row(r) + offset;
        for (int64_t i = 0; i < size; i += L) {
            const Ints a = load(from + i, size - i), b = odd(a);
            const Ints c = load(cosines + i, size - i), s = load(sines + i, size - i);
            const Longs even_sums = even_products(a, c) + even_products(b, s);
            const Longs odd_sums = even_products(b, odd(c)) + even_products(a, odd(s));
            store(to + i, clamp(limited(even_sums, odd_sums), LIMIT), size - i);
        }
    }
}

// Queries and keys as they enter a product.
inline Ints for_score(Ints x) { return clamp(rounded(x, 6), 1 << 20); }

// Part of a vector of a head; heads are WHOLE where their size is one of whole vectors.
template <bool WHOLE>
inline Ints part(const int32_t* from, int64_t left) {
    return load(from, WHOLE ? L : left);
}

// What attention works with while it looks at the places of one head.
struct Seen {
    std::vector<int32_t> query;    // as it enters products, zero behind its end; and then its odd lanes
    std::vector<int64_t> scores;   // of all places
    std::vector<int32_t> weights;  // of all places, zero behind the last
    std::vector<int64_t> places;   // those whose weight is not zero
    int64_t count;                 // of them
    int64_t sum;                   // of the weights

    void resize(int64_t known, int64_t size) {
        query.resize((size + L - 1) / L * L * 2);
        scores.resize(known);
        weights.resize((known + L - 1) / L * L);
        places.resize(known);
    }
};

// The scores of a query for all places, and the weights that follow from them.
template <bool WHOLE>
__attribute__((noinline)) void weigh(const Op& op, const IntegerRun& run, const int32_t* query, const int32_t* key, int64_t apart, Seen& seen) {
    const int64_t size = op.size / op.heads, known = int64_t(seen.scores.size());
    int32_t *narrow = seen.query.data(), *odd_lanes = narrow + seen.query.size() / 2;
    for (int64_t i = 0; i < size; i += L) {
        const Ints q = for_score(load(query + i, size - i));
        store(narrow + i, q, L);
        store(odd_lanes + i, odd(q), L);
    }
    int64_t best = INT64_MIN;
    for (int64_t p = 0; p < known; p++, key += apart) {
        Longs sums = {};
        for (int64_t i = 0; i < size; i += L) {
            const Ints k = for_score(part<WHOLE>(key + i, size - i));
            sums += even_products(load(narrow + i, L), k) + even_products(load(odd_lanes + i, L), odd(k));
        }
        seen.scores[p] = rounded((total(sums) >> 4) * op.constant, 16);
        best = seen.scores[p] > best ? seen.scores[p] : best;
    }
    for (int64_t p = 0; p < known; p++) {
        const int64_t below = best - seen.scores[p];
        seen.weights[p] = int32_t(below < FUNCTION_LIMIT ? below : FUNCTION_LIMIT);
    }
    for (int64_t p = 0; p < known; p += L) {
        store(&seen.weights[p], decay(load(&seen.weights[p], L), run), known - p);
    }
    seen.count = seen.sum = 0;
    for (int64_t p = 0; p < known; p++) {
        seen.sum += seen.weights[p];
        seen.places[seen.count] = p;
        seen.count += seen.weights[p] != 0;
    }
}

// a // b for b > 0.
inline int64_t floor_quotient(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// The weighted mean of COUNT vectors of each place, of which `left` numbers belong to the head.
template <int COUNT, bool WHOLE>
__attribute__((noinline)) void mix(const Seen& seen, const int32_t* content, int64_t apart, int64_t left, int32_t* to) {
    Longs even[COUNT] = {}, odd_sums[COUNT] = {};
    for (int64_t k = 0; k < seen.count; k++) {
        const int64_t p = seen.places[k];
        const Ints weight = all(seen.weights[p]);
#pragma GCC unroll 4
        for (int c = 0; c < COUNT; c++) {
            const Ints x = part<WHOLE>(content + p * apart + c * L, left - c * L);
            const Ints value = clamp(rounded(x, 4), 1 << 26);
            even[c] += even_products(value, weight);
            odd_sums[c] += even_products(odd(value), weight);
        }
    }
    for (int64_t i = 0; i < COUNT * L && i < left; i++) {
        const Longs sums = i % 2 ? odd_sums[i / L] : even[i / L];
        const int64_t mean = floor_quotient(2 * sums[i % L / 2] + seen.sum, 2 * seen.sum);
        to[i] = int32_t(clamp(16 * mean, LIMIT));
    }
}

// Attention of one query a row (x) to the first places of keys (y) and values (z), [rows, places, groups * size], as in
// program.cpp. Places of no weight are left out of the sums, in which they count for nothing.
void attend(const Op& op, const IntegerRun& run, int thread, int threads) {
    const Numbers out(op.out, run), x(op.x, run), keys(op.y, run), contents(op.z, run);
    const int64_t size = op.size / op.heads, known = run.values[op.known], apart = op.groups * size;
    const int64_t sharing = op.heads / op.groups;
    thread_local Seen seen;
    seen.resize(known, size);
    const Share share(run.rows * op.heads, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t r = unit / op.heads, head = unit % op.heads, offset = head / sharing * size;
        const int32_t* content = contents.row(r) + offset;
        int32_t* to = out.row(r) + head * size;
        if (known == 0) {
            for (int64_t i = 0; i < size; i++) to[i] = 0;
            continue;
        }
        const int32_t *query = x.row(r) + head * size, *key = keys.row(r) + offset;
        if (size % L == 0) {
            weigh<true>(op, run, query, key, apart, seen);
        } else {
            weigh<false>(op, run, query, key, apart, seen);
        }
        int64_t i = 0;
        for (; i + 2 * L <= size; i += 2 * L) mix<2, true>(seen, content + i, apart, size - i, to + i);
        for (; i < size; i += L) mix<1, false>(seen, content + i, apart, size - i, to + i);
    }
}

// Rows of a table (y) of `inputs` levels, chosen by symbols (x, int64, one a row), are added to what is there.
void lookup(const Op& op, const IntegerRun& run, int thread, int threads) {
    const Numbers out(op.out, run), table(op.y, run);
    const int64_t* symbols = reinterpret_cast<const int64_t*>(op.x.address);
    const Share share(run.rows, thread, threads);
    for (int64_t r = share.first; r < share.last; r++) {
        if (symbols[r] < 0 || symbols[r] >= op.inputs) {
            *run.wrong = 1;
            continue;
        }
        const int32_t* from = table.row(symbols[r]);
        int32_t* to = out.row(r);
        for (int64_t i = 0; i < op.size; i += L) {
            const int64_t left = op.size - i;
            store(to + i, clamp(load(to + i, left) + load(from + i, left), LIMIT), left);
        }
    }
}

// An LSTM cell: gates (x) in the order output, forget, input, content; cell states (y) are renewed in place.
void cell(const Op& op, const IntegerRun& run, int thread, int threads) {
    const Numbers out(op.out, run), x(op.x, run), cells(op.y, run);
    const int64_t n = op.size, blocks = (n + L - 1) / L;
    const Share share(run.rows * blocks, thread, threads);
    for (int64_t unit = share.first; unit < share.last; unit++) {
        const int64_t r = unit / blocks, o = unit % blocks * L, left = n - o;
        const int32_t* gates = x.row(r) + o;
        int32_t* kept = cells.row(r) + o;
        const Ints emit = sigmoid(load(gates, left), run), forget = sigmoid(load(gates + n, left), run);
        const Ints write = sigmoid(load(gates + 2 * n, left), run);
        const Ints content = hyperbolic(load(gates + 3 * n, left), run);
        const Ints remembered = rounded_product(forget, load(kept, left), 15);
        const Ints state = clamp(remembered + rounded(write * content, 14), LIMIT);
        store(kept, state, left);
        store(out.row(r) + o, rounded(emit * hyperbolic(state, run), 14), left);
    }
}

void act(const Op& op, const IntegerRun& run, int thread, int threads) {
    switch (op.operation) {
        case LINEAR: return linear(op, run, thread, threads);
        case MAP:
        case ADD: return pointwise(op, run, thread, threads);
        case NORM: return norm(op, run, thread, threads);
        case ROTATE: return rotate(op, run, thread, threads);
        case ATTEND: return attend(op, run, thread, threads);
        case LOOKUP: return lookup(op, run, thread, threads);
        case CELL: return cell(op, run, thread, threads);
    }
}

}  // namespace

extern "C" {

// The operations, activations and records of this file, for its caller to compare.
const char* tessella_integer_layout() {
    static const std::string text = layout();
    return text.c_str();
}

// As tessella_run in program.cpp; tables are SIGMOID and EXP.
int64_t tessella_run_integers(const void* ops, int64_t count, int64_t batch, int64_t places, const int64_t* values,
                              int64_t threads, const int32_t* const* tables) {
    std::atomic<int64_t> wrong{0};
    IntegerRun run = {{batch * places, places, values, &wrong}, tables[0], tables[1]};
    run_all(static_cast<const Op*>(ops), count, int(threads),
            [&](const Op& op, int thread, int all) { act(op, run, thread, all); });
    return wrong;
}
}
