// Bytes of a vector register: a wider vector than the processor has would live in memory. With WIDE there are twice as many
// registers.

#pragma once

#if defined(__AVX512F__)
constexpr int BYTES = 64;
constexpr bool WIDE = true;
#elif defined(__AVX__)
constexpr int BYTES = 32;
constexpr bool WIDE = false;
#else
constexpr int BYTES = 16;
constexpr bool WIDE = false;
#endif
