// How the row kernels (norm, embedding, anchor) spread a row over a block: on the host, without
// CUDA, because the sizes of workspaces follow from it.
#pragma once

#include <cstdint>

#include "tessera/kernels/real.h"

namespace tessera::kernels {

// Numbers that a thread handles together: one or two 16-byte accesses.
constexpr int kChunk = 8;

// A row belongs to a group of warps; thread t of the group has chunks t, t + 32 * warps, ...
struct RowShape {
  int warps;   // of a group: 1 to 16
  int chunks;  // of a thread: 1, 2 or 4
  int groups;  // of a block
};

// Few chunks per thread keep registers free for occupancy; wide rows need more, or a group would
// outgrow its block. Narrow rows share a block, which is limited in number per multiprocessor.
constexpr RowShape row_shape(int64_t width) {
  const int64_t row_chunks = (width + kChunk - 1) / kChunk;
  const int chunks = row_chunks <= 128 ? 1 : row_chunks <= 1024 ? 2 : 4;
  const int warps = static_cast<int>((row_chunks + 32 * chunks - 1) / (32 * chunks));
  return {warps, chunks, warps <= 4 ? 8 / warps : 1};
}

constexpr int kMaximumRowThreads = 512;
static_assert(row_shape(kMaximumRowWidth).warps * 32 <= kMaximumRowThreads);

// Blocks of a kernel that walks over the rows and sums columns on the way: what is resident at once
// on 132 multiprocessors with 1024 threads each. A constant, so that sums are the same everywhere.
constexpr int64_t column_sum_blocks(int64_t rows, int64_t width) {
  const RowShape shape = row_shape(width);
  const int64_t resident = int64_t{132} * (1024 / (32 * shape.warps * shape.groups));
  const int64_t needed = (rows + shape.groups - 1) / shape.groups;
  return needed < resident ? needed : resident;
}

}  // namespace tessera::kernels
