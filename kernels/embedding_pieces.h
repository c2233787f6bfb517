// Sizes of the embedding kernels.
#pragma once

#include <cstdint>

namespace tessera::kernels {

// Sorted tokens that a block of the backward pass adds up.
constexpr int64_t kPieceRows = 32;

constexpr int64_t kMaximumEmbeddingRows = (int64_t{1} << 31) - 1;

constexpr int64_t piece_count(int64_t rows) { return (rows + kPieceRows - 1) / kPieceRows; }

inline bool is_vocabulary(int64_t vocabulary) {
  return vocabulary >= 1 && vocabulary < int64_t{1} << 31;
}

}  // namespace tessera::kernels
