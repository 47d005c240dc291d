// The nearest of many codes for each of many vectors, and sums of vectors by code.
//
// The score of code e for vector z is e.e - 2 z.e, which is their squared distance less z.z. Scores stay in registers: a tile
// of ROWS vectors meets a panel of 2 * LANES codes at a time, and each lane keeps the best it has seen. Codes come in rising
// order and only a smaller score replaces a kept one, so of equal scores the lowest index wins. A tile that holds a score
// that is no number keeps index 0 there.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "vector.h"

namespace {

constexpr int LANES = BYTES / sizeof(float), ROWS = WIDE ? 12 : 6;
constexpr int PANEL = 2 * LANES;
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr int64_t CHUNK = 16 * ROWS;       // vectors that stay near while a block of codes passes
constexpr int64_t BLOCK_BYTES = 256 << 10;  // of codes that stay near while a chunk of vectors passes

// The best scores so far of the vectors of a tile, lane by lane.
struct Best {
    Vector score[2];
    Integers index[2];
};

// One tile of vectors [size][ROWS] against one panel of codes [size][PANEL].
inline void meet(const float* z, const float* codes, const float* squares, int64_t size, int32_t first, Best* best) {
    Vector sums[ROWS][2] = {};
    for (int64_t d = 0; d < size; d++, z += ROWS, codes += PANEL) {
        const Vector a = *(const Vector*)codes, b = *(const Vector*)(codes + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            sums[r][0] += a * z[r];
            sums[r][1] += b * z[r];
        }
    }
    Integers lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int half = 0; half < 2; half++) {
        const Vector square = *(const Vector*)(squares + half * LANES);
        const Integers index = lane + (first + half * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const Vector score = square - 2.0f * sums[r][half];
            const Integers less = score < best[r].score[half];
            best[r].score[half] = less ? score : best[r].score[half];
            best[r].index[half] = less ? index : best[r].index[half];
        }
    }
}

// The best of all lanes of a vector; of equal scores the lowest index.
inline void settle(const Best& best, int64_t* symbol, float* score) {
    float least = std::numeric_limits<float>::infinity();
    int32_t index = std::numeric_limits<int32_t>::max();
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < LANES; i++) {
            const float here = best.score[half][i];
            const int32_t at = best.index[half][i];
            if (here < least || (here == least && at < index)) least = here, index = at;
        }
    *symbol = index == std::numeric_limits<int32_t>::max() ? 0 : index;
    *score = least;
}

// A chunk of vectors against all codes.
void search(const float* z, int64_t rows, const float* packed, const float* squares, int64_t panels, int64_t size,
            int64_t* symbols, float* scores, std::vector<float>& tiles, std::vector<Best>& best) {
    const int64_t count = (rows + ROWS - 1) / ROWS, per_block = std::max<int64_t>(1, BLOCK_BYTES / (4 * PANEL * size));
    for (int64_t t = 0; t < count; t++)
        for (int r = 0; r < ROWS; r++) {
            const float* row = z + std::min(t * ROWS + r, rows - 1) * size;
            float* to = tiles.data() + t * ROWS * size + r;
            for (int64_t d = 0; d < size; d++) to[d * ROWS] = row[d];
        }
    const float infinity = std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < count * ROWS; i++) best[i] = {{Vector{} + infinity, Vector{} + infinity}, {}};
    for (int64_t block = 0; block < panels; block += per_block)
        for (int64_t t = 0; t < count; t++)
            for (int64_t p = block; p < std::min(panels, block + per_block); p++)
                meet(tiles.data() + t * ROWS * size, packed + p * PANEL * size, squares + p * PANEL, size,
                     (int32_t)(p * PANEL), best.data() + t * ROWS);
    for (int64_t i = 0; i < rows; i++) settle(best[i], symbols + i, scores + i);
}

}  // namespace

// symbols[n] and scores[n] of vectors [n][size] among codes [codes][size]; packed is room for panels * PANEL * size numbers
// and squares for panels * PANEL, panels = ceil(codes / PANEL).
extern "C" void tessella_nearest(const float* vectors, const float* codes, int64_t n, int64_t count, int64_t size,
                                 float* packed, float* squares, int64_t* symbols, float* scores, int64_t threads) {
    const int64_t panels = (count + PANEL - 1) / PANEL, chunks = (n + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t p = 0; p < panels; p++)
            for (int64_t i = 0; i < PANEL; i++) {
                const int64_t code = p * PANEL + i;
                float* to = packed + p * PANEL * size + i;
                float square = 0;
                for (int64_t d = 0; d < size; d++) {
                    const float value = code < count ? codes[code * size + d] : 0;
                    to[d * PANEL] = value;
                    square += value * value;
                }
                squares[code] = code < count ? square : std::numeric_limits<float>::infinity();
            }
        std::vector<float> tiles(CHUNK * size);
        std::vector<Best> best(CHUNK);
#pragma omp for schedule(dynamic)
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t first = c * CHUNK, rows = std::min(CHUNK, n - first);
            search(vectors + first * size, rows, packed, squares, panels, size, symbols + first, scores + first, tiles, best);
        }
    }
}

// counts[codes] and sums[codes][size], zero before, of the vectors of each code. A thread owns a part of every vector, so
// that the sums do not depend on the number of threads.
extern "C" void tessella_cluster(const float* vectors, const int64_t* symbols, int64_t n, int64_t size, float* counts,
                                 float* sums, int64_t threads) {
    for (int64_t i = 0; i < n; i++) counts[symbols[i]] += 1;
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const int64_t own = omp_get_thread_num(), all = omp_get_num_threads();
#else
        const int64_t own = 0, all = 1;
#endif
        const int64_t first = size * own / all, last = size * (own + 1) / all;
        for (int64_t i = 0; i < n; i++) {
            const float* from = vectors + i * size;
            float* to = sums + symbols[i] * size;
            for (int64_t d = first; d < last; d++) to[d] += from[d];
        }
    }
}
