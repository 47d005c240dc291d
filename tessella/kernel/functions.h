// Functions of vectors, of what processors do not compute by themselves.

#pragma once

#include <cstdint>
#include <cstring>

#include "program.h"

namespace {

inline Vector<float> exponential(Vector<float> x) {
    typedef Lanes<float>::Integers Integers;
    const Vector<float> low = Vector<float>{} - 87.0f, high = Vector<float>{} + 88.0f;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Vector<float> n = (x * 1.44269504f + shift) - shift;
    Vector<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector<float> p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector<float> scale;
    std::memcpy(&scale, &power, BYTES);
    return p * scale;
}

inline Vector<double> exponential(Vector<double> x) {
    typedef Lanes<double>::Integers Integers;
    const Vector<double> low = Vector<double>{} - 708.0, high = Vector<double>{} + 709.0;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const double shift = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves an integer in the lowest bits
    const Vector<double> shifted = x * 1.4426950408889634 + shift, n = shifted - shift;
    Vector<double> r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6;
    Vector<double> p = Vector<double>{} + 1.0 / 6227020800.0;
    for (double k = 12.0, c = 1.0 / 479001600.0; k > 0.5; c *= k, k -= 1.0) p = p * r + c;
    p = p * r + 1.0;
    Integers power;
    std::memcpy(&power, &shifted, BYTES);
    power = (power + 1023) << 52;
    Vector<double> scale;
    std::memcpy(&scale, &power, BYTES);
    return p * scale;
}

// The natural logarithm of normal numbers above zero.
inline Vector<double> logarithm(Vector<double> x) {
    typedef Lanes<double>::Unsigned Unsigned;
    Unsigned bits;
    std::memcpy(&bits, &x, BYTES);
    // x = mantissa * 2^exponent, with a mantissa from the root of 1/2 to the root of 2.
    const uint64_t root = 0x3fe6a09e667f3bcd, fraction = 0x000fffffffffffff, biased = 0x4330000000000800;
    const Unsigned moved = bits - root, high = (moved >> 52) ^ biased, low = (moved & fraction) + root;
    Vector<double> exponent, mantissa;
    std::memcpy(&exponent, &high, BYTES);
    std::memcpy(&mantissa, &low, BYTES);
    exponent -= 4503599627372544.0;  // 2^52 + 2^11, the number that `biased` stands for
    // The series of the inverse hyperbolic tangent.
    const Vector<double> f = (mantissa - 1.0) / (mantissa + 1.0), square = f * f;
    Vector<double> sum = Vector<double>{} + 1.0 / 21.0;
    for (double k = 19.0; k > 2.0; k -= 2.0) sum = sum * square + 1.0 / k;
    return exponent * 0.6931471805599453 + 2.0 * (f + f * square * sum);
}

template <typename V>
inline V sigmoid(V x) {
    return 1.0f / (1.0f + exponential(-x));
}

template <typename V>
inline V hyperbolic(V x) {
    return 1.0f - 2.0f / (1.0f + exponential(x + x));
}

template <typename V>
inline V elu(V x) {
    return x > 0 ? x : exponential(x) - 1.0f;
}

template <typename V>
inline V relu(V x) {
    return x < 0 ? V{} : x;
}

template <typename V>
inline V silu(V x) {
    return x * sigmoid(x);
}

}  // namespace
