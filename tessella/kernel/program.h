// What programs of floating-point numbers (program.cpp) and of integers (integer.cpp) share: the lists of what they can do,
// operands, vectors, and how threads share the work.
//
// Vectors are those of the compiler (GCC and Clang), 64 bytes wide, which it maps to what the processor has.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "vector.h"

namespace {

// One list for the enum and for the names that are exported.
#define OPERATIONS(X)   \
    X(LINEAR, "linear") \
    X(MAP, "map")       \
    X(ADD, "add")       \
    X(NORM, "norm")     \
    X(ROTATE, "rotate") \
    X(ATTEND, "attend") \
    X(LOOKUP, "lookup") \
    X(CELL, "cell")     \
    X(PRODUCT, "product")

// Those from GATE on take outputs in pairs.
#define ACTIVATIONS(X)          \
    X(IDENTITY, "identity")     \
    X(RELU, "relu")             \
    X(SILU, "silu")             \
    X(ELU, "elu")               \
    X(CONCAT_ELU, "concat-elu") \
    X(GATE, "gate")             \
    X(GLU, "glu")               \
    X(SWIGLU, "swiglu")

#define CONSTANT(name, text) name,
enum OperationCode : int64_t { OPERATIONS(CONSTANT) };
enum ActivationCode : int64_t { ACTIVATIONS(CONSTANT) };
#undef CONSTANT

struct Operand {
    int64_t address;       // 0 where there is none
    int64_t image_stride;  // numbers
    int64_t place_stride;  // numbers
    int64_t step;          // numbers that it moves on as its variable grows by one
    int64_t variable;      // an index, -1 for an operand that does not move
};

// Fields and their offsets as stepping/compiled.py writes them.
template <typename Struct>
std::string fields(std::initializer_list<std::pair<const char*, size_t>> offsets) {
    std::string text;
    for (const auto& field : offsets) text += std::string(field.first) + ":" + std::to_string(field.second) + " ";
    return text + "bytes:" + std::to_string(sizeof(Struct));
}

// The lists and the operands in the form in which stepping/compiled.py writes them; a record follows.
inline std::string lists() {
#define NAME(name, text) " " text
    return "operations" OPERATIONS(NAME) "; activations" ACTIVATIONS(NAME) "; operand " +
           fields<Operand>({{"address", offsetof(Operand, address)},
                            {"image_stride", offsetof(Operand, image_stride)},
                            {"place_stride", offsetof(Operand, place_stride)},
                            {"step", offsetof(Operand, step)},
                            {"variable", offsetof(Operand, variable)}}) +
           "; record ";
#undef NAME
}

constexpr int ROWS = WIDE ? 8 : 6;  // of a product, whose sums fit into the registers
constexpr int64_t TILE = WIDE ? 8 : 12, BLOCK = 64;  // rows that a thread takes at once, and rows that stay in cache

// What is the same for all operations of a run.
struct Run {
    int64_t rows, places;
    const int64_t* values;
    std::atomic<int64_t>* wrong;  // set where a symbol is none of its table
    int64_t image = 0;            // the one that the rows begin with
};

template <typename T>
struct Lanes;

template <>
struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(BYTES), aligned(4), may_alias));
    typedef int32_t Integers __attribute__((vector_size(BYTES)));
    static constexpr int count = BYTES / sizeof(float);
};

template <>
struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(BYTES), aligned(8), may_alias));
    typedef int64_t Integers __attribute__((vector_size(BYTES)));
    typedef uint64_t Unsigned __attribute__((vector_size(BYTES)));
    static constexpr int count = BYTES / sizeof(double);
};

template <>
struct Lanes<int32_t> {
    typedef int32_t Vector __attribute__((vector_size(BYTES), aligned(4), may_alias));
    static constexpr int count = BYTES / sizeof(int32_t);
};

template <typename T>
using Vector = typename Lanes<T>::Vector;

template <typename T>
inline Vector<T> load(const T* from, int64_t count) {
    Vector<T> v = {};
    if (count >= Lanes<T>::count) return *reinterpret_cast<const Vector<T>*>(from);
    for (int64_t i = 0; i < count; i++) v[i] = from[i];
    return v;
}

template <typename T>
inline void store(T* to, Vector<T> v, int64_t count) {
    if (count >= Lanes<T>::count) {
        *reinterpret_cast<Vector<T>*>(to) = v;
    } else {
        for (int64_t i = 0; i < count; i++) to[i] = v[i];
    }
}

template <typename T>
struct Matrix {
    T* start;
    int64_t stride, place, places;
    // The rows of a run's images; null where there is no operand.
    Matrix(const Operand& o, const Run& run)
        : Matrix(o, run, o.address ? run.image * o.image_stride : 0) {}
    // One that all images share: weights, a table, scales.
    static Matrix shared(const Operand& o, const Run& run) { return Matrix(o, run, 0); }
    T* row(int64_t r) const {
        return places == 1 ? start + r * stride : start + r / places * stride + r % places * place;
    }
    // The addresses of COUNT rows, from place p of an image on; null where there is no matrix.
    template <int COUNT, typename Pointer>
    void rows(int64_t image, int64_t p, Pointer* addresses) const {
        for (int i = 0; i < COUNT; i++) {
            addresses[i] = start ? start + image * stride + p * place : nullptr;
            if (++p == places) p = 0, image++;
        }
    }
    explicit operator bool() const { return start != nullptr; }

  private:
    Matrix(const Operand& o, const Run& run, int64_t offset)
        : start(reinterpret_cast<T*>(o.address) + (o.variable < 0 ? 0 : run.values[o.variable] * o.step) + offset),
          stride(o.image_stride), place(o.place_stride), places(run.places) {}
};

// A share of n units for thread t of count, contiguous.
struct Share {
    int64_t first, last;
    Share(int64_t n, int t, int count) : first(n * t / count), last(n * (t + 1) / count) {}
};

constexpr int EAGER = 64, PATIENCE = 4096;

// All threads wait for each other, spinning: the waits are shorter than a system call. Each counts its own turns and looks
// at those of the others, so that news travels between two processors once, and not there and back.
class Barrier {
  public:
    explicit Barrier(int count) : turns_(count) {}

    void wait(int thread) {
        const int64_t turn = turns_[thread].count.load(std::memory_order_relaxed) + 1;
        turns_[thread].count.store(turn, std::memory_order_release);
        for (const Turn& other : turns_) {
            for (int spins = 0; other.count.load(std::memory_order_acquire) < turn; spins++) {
#if defined(__x86_64__)
                if (spins > EAGER) __builtin_ia32_pause();
#endif
                if (spins > PATIENCE) sched_yield();  // somebody else needs the processor of the thread we wait for
            }
        }
    }

  private:
    struct alignas(64) Turn {
        std::atomic<int64_t> count{0};
    };
    std::vector<Turn> turns_;
};

// All operations one after the other, act(operation, thread, threads), each shared by all threads.
template <typename Op, typename Act>
void run_all(const Op* ops, int64_t count, int threads, const Act& act) {
#ifdef _OPENMP
    if (threads > 1) {
        Barrier barrier(threads);
        bool together = true;
#pragma omp parallel num_threads(threads)
        {
            if (omp_get_num_threads() == threads) {
                for (int64_t i = 0; i < count; i++) {
                    act(ops[i], omp_get_thread_num(), threads);
                    if (i + 1 < count) barrier.wait(omp_get_thread_num());
                }
            } else if (omp_get_thread_num() == 0) {
                together = false;
            }
        }
        if (together) return;
    }
#endif
    for (int64_t i = 0; i < count; i++) act(ops[i], 0, 1);
}

}  // namespace
