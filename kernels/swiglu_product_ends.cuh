// How a tile of a product ends in SwiGLU, forward and backward: from its rounded sums to memory.
//
// Writing a tile out takes as long as several blocks of its product, at 64 bytes a clock, and
// nothing is multiplied meanwhile. So the end of a tile is cut into chunks, and the kernel does one
// between two blocks of the next tile's product each. A warp ends its own 16 rows alone: by way of
// pieces of shared memory, which tensor copies write out.
#pragma once

#include <cuda_bf16.h>

#include "hopper.cuh"
#include "stage_math.h"
#include "swiglu_sigmoid.cuh"

namespace tessera::kernels {

constexpr int kPieceColumns = 64;
constexpr int kPieceBytes = 16 * kPieceColumns * 2;  // the 16 rows of a warp

// What a launch is given. A cluster's blocks work on neighbouring rows of tiles.
struct SwigluProductArguments {
  CUtensorMap a, b;     // the factors
  CUtensorMap gate_up;  // [m, 2 * width], in boxes of a piece
  CUtensorMap h;        // [m, width]
  int width;
  int row_tiles;  // of a whole cluster
  int column_tiles;
  int k_blocks;
  bool makes_h;
};

__device__ __forceinline__ uint32_t packed(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float low(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

// A warp's pieces, and its two barriers for those that it loads.
struct WarpPlace {
  uint32_t shared;  // of the first piece
  uint32_t barrier;
  int row;  // of the matrix, the warp's first
  int lane;

  // The address that this lane gives for the four matrices of columns 16 * part .. + 15 of a piece,
  // in the swizzle of tensor copies.
  __device__ __forceinline__ uint32_t matrices(int piece, int part) const {
    const int r = lane & 15;
    const int chunk = 2 * part + (lane >> 4);
    return shared + piece * kPieceBytes + r * 128 + ((chunk ^ (r & 7)) << 4);
  }
  // Until at most kGroups of the warp's stores have still to read what it wrote.
  template <int kGroups>
  __device__ __forceinline__ void wait_for_stores() const {
    if (lane == 0) stores_have_read<kGroups>();
    __syncwarp();
  }
};

// The tile is half gate, half up: 64 columns of either, and again. In six chunks: gate, up and h of
// the first 64 columns, then of the others.
struct SwigluForwardEnd {
  static constexpr bool kMajorN = false;
  static constexpr int kStages = 4;
  static constexpr int kCluster = 2;
  static constexpr int kGroup = 16;
  static constexpr int kColumns = 128;  // of `width`, a tile
  static constexpr int kChunks = 6;
  static constexpr int kPieces = 2;
  static constexpr bool kReturnsEarly = false;

  static __device__ __forceinline__ void begin(const SwigluProductArguments&, const WarpPlace&,
                                               int) {}

  static __device__ __forceinline__ void write_chunk(const SwigluProductArguments& arguments,
                                                     const WarpPlace& place, int column,
                                                     const uint32_t (&words)[64], int chunk) {
    const int half = chunk / 3, what = chunk % 3, piece = chunk & 1;
    const uint32_t* gates = words + 32 * half;
    const uint32_t* ups = gates + 16;
    uint32_t w[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      w[i] = what == 0 ? gates[i] : what == 1 ? ups[i] : h_of(gates[i], ups[i]);
    }
    place.wait_for_stores<1>();
#pragma unroll
    for (int part = 0; part < 4; ++part) store_matrices(place.matrices(piece, part), w + 4 * part);
    fence_for_copies();
    __syncwarp();
    if (place.lane == 0) {
      store_box(what == 2 ? &arguments.h : &arguments.gate_up,
                column + kPieceColumns * half + (what == 1 ? arguments.width : 0), place.row,
                place.shared + piece * kPieceBytes);
      stores_commit();
    }
  }

 private:
  static __device__ __forceinline__ uint32_t h_of(uint32_t gates, uint32_t ups) {
    const float g0 = low(gates), g1 = high(gates);
    return packed(swiglu(g0, low(ups), sigmoid<Bfloat16>(g0)),
                  swiglu(g1, high(ups), sigmoid<Bfloat16>(g1)));
  }
};

// The tile is dh. Its gates and ups come 64 columns at a time, two such ahead, into pairs of pieces
// that then hold what goes out over them; a fifth piece is h's.
template <int kChunks_>
struct SwigluBackwardEnd {
  static constexpr bool kMajorN = true;
  static constexpr int kStages = 3;
  static constexpr int kCluster = 1;
  static constexpr int kGroup = 4;
  static constexpr int kColumns = 256;
  static constexpr int kChunks = kChunks_;
  static constexpr int kPieces = 5;
  static constexpr bool kReturnsEarly = true;

  // Early in a tile, when the one before is written out: asks for what the end of it needs.
  static __device__ __forceinline__ void begin(const SwigluProductArguments& arguments,
                                               const WarpPlace& place, int column) {
    if (place.lane == 0) {
      stores_have_read<0>();
      load_gate_up(arguments, place, column, 0);
      load_gate_up(arguments, place, column, 1);
    }
    __syncwarp();
  }

  static __device__ __forceinline__ void write_chunk(const SwigluProductArguments& arguments,
                                                     const WarpPlace& place, int column,
                                                     const uint32_t (&words)[64], int chunk) {
    constexpr int kEach = 16 / kChunks;  // parts of 16 columns
    static_assert(kEach * kChunks == 16);
#pragma unroll
    for (int part = chunk * kEach; part < (chunk + 1) * kEach; ++part) {
      write_part(arguments, place, column, words + 4 * part, part / 4, part % 4);
    }
  }

 private:
  static constexpr int kH = 4;

  static __device__ __forceinline__ void load_gate_up(const SwigluProductArguments& arguments,
                                                      const WarpPlace& place, int column,
                                                      int quarter) {
    const int slot = quarter & 1;
    const uint32_t barrier = place.barrier + 8 * slot;
    const uint32_t to = place.shared + 2 * slot * kPieceBytes;
    const int x = column + kPieceColumns * quarter;
    barrier_expect(barrier, 2 * kPieceBytes);
    load_box(to, &arguments.gate_up, x, place.row, barrier);
    load_box(to + kPieceBytes, &arguments.gate_up, arguments.width + x, place.row, barrier);
  }

  static __device__ __forceinline__ void write_part(const SwigluProductArguments& arguments,
                                                    const WarpPlace& place, int column,
                                                    const uint32_t* dhs, int quarter, int part) {
    const int gate = 2 * (quarter & 1), up = gate + 1;
    const int x = column + kPieceColumns * quarter;
    if (part == 0) {
      if (quarter > 0) place.wait_for_stores<0>();
      // Each barrier is used twice a tile.
      barrier_wait(place.barrier + 8 * (quarter & 1), quarter / 2);
      __syncwarp();
    }
    if (part == 1 && (quarter == 1 || quarter == 2) && place.lane == 0) {
      load_gate_up(arguments, place, column, quarter + 1);  // where the quarter before was
    }
    uint32_t gates[4], ups[4], hs[4];
    load_matrices(place.matrices(gate, part), gates);
    load_matrices(place.matrices(up, part), ups);
    differentiate(gates, ups, dhs, hs);
    store_matrices(place.matrices(gate, part), gates);
    store_matrices(place.matrices(up, part), ups);
    if (arguments.makes_h) store_matrices(place.matrices(kH, part), hs);
    if (part != 3) return;
    fence_for_copies();
    __syncwarp();
    if (place.lane != 0) return;
    if (arguments.makes_h) {
      store_box(&arguments.h, x, place.row, place.shared + kH * kPieceBytes);
    }
    store_box(&arguments.gate_up, x, place.row, place.shared + gate * kPieceBytes);
    store_box(&arguments.gate_up, arguments.width + x, place.row, place.shared + up * kPieceBytes);
    stores_commit();
  }

  // From gate, up and dh to dgate, dup and h.
  static __device__ __forceinline__ void differentiate(uint32_t (&gates)[4], uint32_t (&ups)[4],
                                                       const uint32_t* dhs, uint32_t (&hs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float g[2] = {low(gates[i]), high(gates[i])};
      const float u[2] = {low(ups[i]), high(ups[i])};
      const float dh[2] = {low(dhs[i]), high(dhs[i])};
      float dgate[2], dup[2], h[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float s = sigmoid<Bfloat16>(g[e]);
        dgate[e] = swiglu_gate_gradient(dh[e], g[e], u[e], s);
        dup[e] = swiglu_up_gradient(dh[e], g[e], s);
        h[e] = swiglu(g[e], u[e], s);
      }
      gates[i] = packed(dgate[0], dgate[1]);
      ups[i] = packed(dup[0], dup[1]);
      hs[i] = packed(h[0], h[1]);
    }
  }
};

}  // namespace tessera::kernels
