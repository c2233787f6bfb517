// The product of a tile after the other with wgmma and the tensor copy engine.
//
// A persistent kernel: one thread loads tiles of both factors into a ring of stages, and two
// warpgroups of consumers, each with 64 rows of the tile and all its 256 columns, multiply. The
// blocks of a cluster work on neighbouring rows of tiles: each loads half of the second factor's
// tile for both. A consumer keeps 128 sums of the tile it works on and, rounded, in 64 registers,
// the tile before, which it ends between the products (swiglu_product_ends.cuh).
#pragma once

#include "swiglu_product_ends.cuh"
#include "wgmma_m64n256k16.cuh"

namespace tessera::kernels {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kProductThreads = 128 * (kConsumers + 1);
constexpr int kTileM = 64 * kConsumers;
constexpr int kTileN = 256;
constexpr int kTileK = 64;
constexpr int kBytesA = kTileM * kTileK * 2;
constexpr int kBytesB = kTileN * kTileK * 2;
constexpr int kStageBytes = kBytesA + kBytesB;
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;

// Of shared memory, from a multiple of 1024 bytes on: the ring, the warps' pieces, barriers.
template <class End>
struct ProductMemory {
  static constexpr int kWarpBytes = End::kPieces * kPieceBytes;
  static constexpr int kRingBytes = End::kStages * kStageBytes;
  static constexpr int kOutBytes = kConsumers * 4 * kWarpBytes;
  static constexpr int kBarriers = 2 * End::kStages + 2 * 4 * kConsumers;
  static constexpr int kBytes = 1024 + kRingBytes + kOutBytes + kBarriers * 8;
  static_assert(kBytes <= 232448);

  uint32_t ring, out, full, empty, side;
  __device__ __forceinline__ explicit ProductMemory(const void* shared)
      : ring((shared_address(shared) + 1023) & ~1023u),
        out(ring + kRingBytes),
        full(out + kOutBytes),
        empty(full + 8 * End::kStages),
        side(empty + 8 * End::kStages) {}
};

// Where the tiles of a cluster lie: runs of kGroup rows of tiles, column by column, so that what is
// worked on at a time needs few different rows and columns. In 32 bits: the divisions of 64 would
// be on the critical path.
struct Tile {
  int row, column;
};
template <class End>
__device__ __forceinline__ Tile tile_of(const SwigluProductArguments& arguments, int index) {
  const int run = End::kGroup * arguments.column_tiles;
  const int first = index / run * End::kGroup;
  const int rows = min(End::kGroup, arguments.row_tiles - first);
  const int within = index % run;
  return {first + within % rows, within / rows};
}

// The stage of the ring that comes next, and its barriers' parity.
template <class End>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == End::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <class End>
__device__ __forceinline__ void load_second_factor(const SwigluProductArguments& arguments,
                                                   uint32_t to, int k, int column, uint32_t rank,
                                                   uint32_t barrier) {
  constexpr int kHalf = kBytesB / 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (End::kMajorN) {
      static_assert(End::kCluster == 1);
      load_box(to + half * kHalf, &arguments.b, 0, k, column / 64 + 2 * half, barrier);
    } else {
      static_assert(End::kCluster == 2);
      if (half != rank) continue;
      // 64 rows of the gate's, 64 of up's.
      const int row = column + 64 * half;
      load_box_to_all(to + half * kHalf, &arguments.b, k, row, barrier, 3);
      load_box_to_all(to + half * kHalf + kHalf / 2, &arguments.b, k, arguments.width + row,
                      barrier, 3);
    }
  }
}

// One thread.
template <class End>
__device__ __forceinline__ void produce(const SwigluProductArguments& arguments,
                                        const ProductMemory<End>& memory, uint32_t rank, int first,
                                        int step, int work) {
  prefetch_map(&arguments.a);
  prefetch_map(&arguments.b);
  RingPlace<End> ring;
  Tile tile = tile_of<End>(arguments, first), following = tile;
  for (int index = first; index < work; index += step, tile = following) {
    const int row = (tile.row * End::kCluster + rank) * kTileM;
    const int column = tile.column * End::kColumns;
    for (int block = 0; block < arguments.k_blocks; ++block) {
      const int k = block * kTileK;
      const uint32_t to = memory.ring + ring.stage * kStageBytes;
      const uint32_t barrier = memory.full + 8 * ring.stage;
      barrier_wait(memory.empty + 8 * ring.stage, ring.parity ^ 1);
      barrier_expect(barrier, kStageBytes);
      load_box(to, &arguments.a, k, row, barrier);
      load_second_factor<End>(arguments, to + kBytesA, k, column, rank, barrier);
      ring.next();
      if (block == 0) following = tile_of<End>(arguments, index + step);  // here it delays nothing
    }
  }
}

// A warpgroup; the others of the block and the cluster run beside it.
template <class End>
__device__ __forceinline__ void consume(const SwigluProductArguments& arguments,
                                        const ProductMemory<End>& memory, uint32_t rank, int first,
                                        int step, int work) {
  const int warp = threadIdx.x / 32 - 4;
  const int consumer = warp / 4;
  const int quarter = warp % 4;
  WarpPlace place;
  place.shared = memory.out + warp * ProductMemory<End>::kWarpBytes;
  place.barrier = memory.side + warp * 16;
  place.lane = threadIdx.x % 32;
  const uint64_t a_of_ring = tile_descriptor(memory.ring + consumer * 8192, 8192);
  const uint64_t b_of_ring = tile_descriptor(memory.ring + kBytesA, 8192);
  RingPlace<End> ring;
  float d[128];
  int held = -1;  // the stage that a product may still read
  const auto give_back = [&] {
    if (held >= 0 && place.lane == 0) {
      if constexpr (End::kCluster > 1) {
        if (quarter < End::kCluster) barrier_arrive_at(memory.empty + 8 * held, quarter);
      } else {
        if (quarter == 0) barrier_arrive(memory.empty + 8 * held);
      }
    }
    held = -1;
  };
  const auto finish = [&] {
    wgmma_wait<0>();
    give_back();
  };
  // Begins the next block's product; the one before is done after it.
  const auto multiply_next = [&](bool fresh) {
    barrier_wait(memory.full + 8 * ring.stage, ring.parity);
    wgmma_fence();
    const uint64_t a = a_of_ring + ring.stage * (kStageBytes >> 4);
    const uint64_t b = b_of_ring + ring.stage * (kStageBytes >> 4);
#pragma unroll
    for (int i = 0; i < kTileK / 16; ++i) {
      wgmma_m64n256k16<End::kMajorN>(d, a + i * 2, b + i * (End::kMajorN ? 128 : 2),
                                     !fresh || i > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    give_back();
    held = ring.stage;
    ring.next();
  };

  Tile tile = tile_of<End>(arguments, first);
  int column = 0;
  uint32_t words[64];  // of the tile before
  for (int index = first; index < work; index += step) {
#pragma unroll
    for (int chunk = 0; chunk < End::kChunks; ++chunk) {
      multiply_next(chunk == 0);
      if (index > first) End::write_chunk(arguments, place, column, words, chunk);
    }
    place.row = (tile.row * End::kCluster + rank) * kTileM + consumer * 64 + quarter * 16;
    column = tile.column * End::kColumns;
    End::begin(arguments, place, column);
    for (int block = End::kChunks; block < arguments.k_blocks; ++block) {
      // With few stages, better give one back than wait with it in hand.
      if (End::kReturnsEarly && held >= 0 &&
          !barrier_is_done(memory.full + 8 * ring.stage, ring.parity)) {
        finish();
      }
      multiply_next(false);
    }
    tile = tile_of<End>(arguments, index + step);  // while the tensor cores work
    finish();
    hold(d);
#pragma unroll
    for (int i = 0; i < 64; ++i) words[i] = packed(d[2 * i], d[2 * i + 1]);
  }
  if (first < work) {
#pragma unroll
    for (int chunk = 0; chunk < End::kChunks; ++chunk) {
      End::write_chunk(arguments, place, column, words, chunk);
    }
  }
  if (place.lane == 0) stores_wait();
}

template <class End>
__global__ void __launch_bounds__(kProductThreads, 1)
    swiglu_product_kernel(const __grid_constant__ SwigluProductArguments arguments) {
  extern __shared__ unsigned char shared_bytes[];
  const ProductMemory<End> memory(shared_bytes);
  const uint32_t rank = End::kCluster == 1 ? 0 : cluster_rank();
  if (threadIdx.x == 0) {
    for (int i = 0; i < End::kStages; ++i) {
      barrier_init(memory.full + 8 * i, 1);
      barrier_init(memory.empty + 8 * i, kConsumers * End::kCluster);
    }
    for (int i = 0; i < 8 * kConsumers; ++i) barrier_init(memory.side + 8 * i, 1);
    barrier_init_fence();
  }
  if constexpr (End::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  const int work = arguments.row_tiles * arguments.column_tiles;
  const int first = blockIdx.x / End::kCluster;
  const int step = gridDim.x / End::kCluster;
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce(arguments, memory, rank, first, step, work);
  } else {
    take_registers<kConsumerRegisters>();
    consume(arguments, memory, rank, first, step, work);
  }
  if constexpr (End::kCluster > 1) {  // a block's barriers are there until no other arrives at them
    __syncwarp();
    cluster_sync();
  }
}

}  // namespace tessera::kernels
