// Rows of either type for the CPU references.
#pragma once

#include <cstdint>

#include "tessera/base/status.h"
#include "tessera/kernels/real.h"

namespace tessera::kernels {

inline float load_real(Real type, const void* data, int64_t index) {
  return type == Real::kFloat32 ? static_cast<const float*>(data)[index]
                                : to_float(static_cast<const Bfloat16*>(data)[index]);
}

inline void store_real(Real type, void* data, int64_t index, float value) {
  if (type == Real::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<Bfloat16*>(data)[index] = real_of<Bfloat16>(value);
  }
}

// `value` as the type would keep it.
inline float round_real(Real type, float value) {
  return type == Real::kFloat32 ? value : to_float(real_of<Bfloat16>(value));
}

inline void check_row_sizes(int64_t rows, int64_t width) {
  TESSERA_CHECK(rows >= 0);
  TESSERA_CHECK(width >= 1 && width <= kMaximumRowWidth);
}

}  // namespace tessera::kernels
