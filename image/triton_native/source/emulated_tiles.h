// AMX's tiles in plain C++, so that the tests of that level run on CPUs without it.
//
// After Intel's description of the instructions: what the configuration leaves out is not loaded, and
// a product adds up even and odd inputs apart before it adds them to the sums.
#pragma once

#include <cstdint>
#include <cstring>

namespace native {
namespace emulated {

struct Tile {
  int rows = 0, bytes = 0;
  uint8_t data[16][64] = {};
};

inline Tile* tiles() {
  thread_local Tile all[8];
  return all;
}

inline void configure(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  for (int t = 0; t < 8; ++t) {
    uint16_t width;
    std::memcpy(&width, bytes + 16 + 2 * t, 2);
    tiles()[t] = Tile();
    tiles()[t].bytes = width;
    tiles()[t].rows = bytes[48 + t];
  }
}

inline void load(int t, const void* from, size_t stride) {
  Tile& to = tiles()[t];
  std::memset(to.data, 0, sizeof(to.data));
  for (int r = 0; r < to.rows; ++r)
    std::memcpy(to.data[r], static_cast<const char*>(from) + r * stride, to.bytes);
}

inline void store(int t, void* out, size_t stride) {
  const Tile& from = tiles()[t];
  for (int r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<char*>(out) + r * stride, from.data[r], from.bytes);
}

inline float wide(const uint8_t* from) {
  uint32_t bits = static_cast<uint32_t>(from[0] | from[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void multiply(int c, int a, int b) {
  Tile &sums = tiles()[c], &left = tiles()[a], &right = tiles()[b];
  for (int m = 0; m < sums.rows; ++m)
    for (int n = 0; n < sums.bytes / 4; ++n) {
      float even = 0.0f, odd = 0.0f, sum;
      for (int k = 0; k < left.bytes / 4 && k < right.rows; ++k) {
        even += wide(left.data[m] + 4 * k) * wide(right.data[k] + 4 * n);
        odd += wide(left.data[m] + 4 * k + 2) * wide(right.data[k] + 4 * n + 2);
      }
      std::memcpy(&sum, sums.data[m] + 4 * n, 4);
      sum += even + odd;
      std::memcpy(sums.data[m] + 4 * n, &sum, 4);
    }
}

}  // namespace emulated
}  // namespace native

#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_release() static_cast<void>(0)
#define _tile_zero(t) std::memset(native::emulated::tiles()[t].data, 0, 1024)
#define _tile_loadd(t, from, stride) native::emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) native::emulated::store(t, to, stride)
#define _tile_dpbf16ps(c, a, b) native::emulated::multiply(c, a, b)
