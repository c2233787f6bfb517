// The reference of the optimizer kernels, and what a CPU runs: loops that the compiler vectorises
// without changing a bit.
#include <algorithm>
#include <cmath>

#include "optimizer_math.h"
#include "tessera/base/status.h"
#include "tessera/kernels/optimizer.h"
#include "widest_vectors.h"

namespace tessera::kernels {
namespace {

// Sums that run side by side: what a vector register holds, twice.
constexpr int64_t kLanes = 32;
// Squares added in fp32 before the sum goes on in double.
constexpr int64_t kRowsPerSum = 16;
// Values between two looks at the compute weights: they are still in the first-level cache.
constexpr int64_t kRun = 1024;

TESSERA_WIDEST_VECTORS
double sum_of_squares(const float* __restrict__ values, int64_t count) {
  double total = 0;
  int64_t i = 0;
  while (i + kLanes <= count) {
    float lanes[kLanes] = {};
    const int64_t rows = std::min(kRowsPerSum, (count - i) / kLanes);
    for (int64_t row = 0; row < rows; ++row, i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] += values[i + lane] * values[i + lane];
      }
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) total += static_cast<double>(lanes[lane]);
  }
  for (; i < count; ++i) total += static_cast<double>(values[i] * values[i]);
  return total;
}

TESSERA_WIDEST_VECTORS
void adam_run(const AdamConstants& constants, float scale, float keep, int64_t count,
              const float* __restrict__ gradient, float* __restrict__ values,
              float* __restrict__ first, float* __restrict__ second) {
  const AdamConstants c = constants;
  for (int64_t i = 0; i < count; ++i) {
    adam_update(c, scale, keep, gradient[i], values[i], first[i], second[i]);
  }
}

TESSERA_WIDEST_VECTORS
void round_to_bfloat16(const float* __restrict__ values, int64_t count,
                       uint16_t* __restrict__ rounded) {
  for (int64_t i = 0; i < count; ++i) rounded[i] = bfloat16_of_float(values[i]);
}

// The compute weights of a run of values.
struct WeightTargets {
  float* as_float;
  uint16_t* as_bfloat16;
};

void write_weights(const float* values, int64_t at, int64_t count, const WeightTargets& targets) {
  if (targets.as_float != nullptr) std::copy_n(values + at, count, targets.as_float + at);
  if (targets.as_bfloat16 != nullptr) {
    round_to_bfloat16(values + at, count, targets.as_bfloat16 + at);
  }
}

TESSERA_WIDEST_VECTORS
void momentum_run(const MuonParams& params, float scale, int64_t count,
                  const float* __restrict__ gradient, float* __restrict__ momentum,
                  float* __restrict__ update) {
  const MuonParams p = params;
  for (int64_t i = 0; i < count; ++i) {
    update[i] = muon_momentum_update(p, scale, gradient[i], momentum[i]);
  }
}

TESSERA_WIDEST_VECTORS
void apply_run(const MuonParams& params, int64_t count, const float* __restrict__ direction,
               float* __restrict__ values) {
  const MuonParams p = params;
  for (int64_t i = 0; i < count; ++i) values[i] = muon_applied(p, values[i], direction[i]);
}

TESSERA_WIDEST_VECTORS
void widen_bfloat16(const uint16_t* __restrict__ numbers, int64_t count,
                    float* __restrict__ widened) {
  for (int64_t i = 0; i < count; ++i) widened[i] = float_of_bfloat16(numbers[i]);
}

}  // namespace

void norm_partials_cpu(const NormParams& params, int64_t begin, int64_t end) {
  TESSERA_CHECK(begin >= 0 && begin <= end && end <= params.chunk_count);
  for (int64_t i = begin; i < end; ++i) {
    const OptimizerChunk& chunk = params.chunks[i];
    params.partials[i] = sum_of_squares(gradient_of(params.gradient, chunk), chunk.count);
  }
}

void finish_norm_cpu(const NormParams& params) {
  TESSERA_CHECK(params.microbatches >= 1 && params.result != nullptr);
  double sum = 0;
  for (int64_t i = 0; i < params.chunk_count; ++i) sum += params.partials[i];
  *params.result = gradient_norm_of(sum, params.microbatches, params.clip_norm);
}

std::vector<OptimizerChunk> optimizer_chunks(const std::vector<OptimizerSegment>& segments,
                                             const std::vector<int64_t>& pieces) {
  TESSERA_CHECK(pieces.empty() || pieces.front() == 0);
  TESSERA_CHECK(pieces.size() <= size_t{1} << 16);
  std::vector<OptimizerChunk> chunks;
  size_t next = 0, piece = 0;
  while (next < segments.size()) {
    const OptimizerSegment& first = segments[next];
    int64_t end = first.offset;
    while (next < segments.size() && segments[next].offset == end &&
           segments[next].decays == first.decays) {
      end += segments[next++].count;
    }
    TESSERA_CHECK(next == segments.size() || segments[next].offset >= end);
    // Cut at whole multiples of the size, so that all but the ends of a segment is aligned.
    for (int64_t begin = first.offset; begin < end;) {
      while (piece + 1 < pieces.size() && pieces[piece + 1] <= begin) ++piece;
      int64_t stop = std::min(end, (begin / kChunkValues + 1) * kChunkValues);
      if (piece + 1 < pieces.size()) stop = std::min(stop, pieces[piece + 1]);
      const int64_t start = pieces.empty() ? 0 : pieces[piece];
      chunks.push_back({begin, begin - start, static_cast<int32_t>(stop - begin),
                        static_cast<uint16_t>(first.decays ? 1 : 0), static_cast<uint16_t>(piece)});
      begin = stop;
    }
  }
  return chunks;
}

AdamConstants adamw_constants(const AdamSettings& settings, double learning_rate, uint64_t step) {
  TESSERA_CHECK(step >= 1);
  const double age = static_cast<double>(step);
  AdamConstants constants;
  constants.beta1 = static_cast<float>(settings.beta1);
  constants.first_rate = static_cast<float>(1 - settings.beta1);
  constants.beta2 = static_cast<float>(settings.beta2);
  constants.second_rate = static_cast<float>(1 - settings.beta2);
  constants.moment_weight = static_cast<float>(learning_rate / (1 - std::pow(settings.beta1, age)));
  constants.root_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(settings.beta2, age)));
  constants.epsilon = static_cast<float>(settings.epsilon);
  constants.keep = static_cast<float>(1 - learning_rate * settings.weight_decay);
  return constants;
}

double nadam_momentum(const AdamSettings& settings, uint64_t step) {
  const double age = static_cast<double>(step);
  return settings.beta1 * (1 - 0.5 * std::pow(0.96, age * settings.momentum_decay));
}

AdamConstants nadam_constants(const AdamSettings& settings, double learning_rate, uint64_t step,
                              double momentum_product) {
  const double next = nadam_momentum(settings, step + 1);
  AdamConstants constants = adamw_constants(settings, learning_rate, step);
  constants.gradient_weight = static_cast<float>(
      learning_rate * (1 - nadam_momentum(settings, step)) / (1 - momentum_product));
  constants.moment_weight =
      static_cast<float>(learning_rate * next / (1 - momentum_product * next));
  return constants;
}

void adam_step_cpu(const AdamParams& params, int64_t begin, int64_t end) {
  TESSERA_CHECK(begin >= 0 && begin <= end && end <= params.chunk_count);
  for (int64_t chunk_index = begin; chunk_index < end; ++chunk_index) {
    const OptimizerChunk& chunk = params.chunks[chunk_index];
    const float keep = chunk.decays != 0 ? params.constants.keep : 1.0f;
    const float* gradient = gradient_of(params.gradient, chunk);
    for (int64_t done = 0; done < chunk.count; done += kRun) {
      const int64_t at = chunk.offset + done;
      const int64_t count = std::min(kRun, chunk.count - done);
      if (params.norm->finite != 0) {
        adam_run(params.constants, params.norm->scale, keep, count, gradient + done,
                 params.values + at, params.first_moment + at, params.second_moment + at);
      }
      write_weights(params.values, at, count, {params.weights_float, params.weights_bfloat16});
    }
  }
}

void muon_momentum_cpu(const MuonParams& params, int64_t begin, int64_t end) {
  TESSERA_CHECK(begin >= 0 && begin <= end && end <= muon_block_count(params));
  TESSERA_CHECK((params.stack_float == nullptr) != (params.stack_bfloat16 == nullptr));
  for (int64_t index = begin; index < end; ++index) {
    const MuonBlock block = muon_block(params, index);
    for (int64_t done = 0; done < block.count; done += kRun) {
      const int64_t count = std::min(kRun, block.count - done);
      const int64_t flat = block.flat + done, stack = block.stack + done;
      float update[kRun] = {};
      if (params.norm->finite != 0) {
        momentum_run(params, params.norm->scale, count, gradient_of(params, block) + done,
                     params.momentum + flat, update);
      }
      if (params.stack_float != nullptr) std::copy_n(update, count, params.stack_float + stack);
      if (params.stack_bfloat16 != nullptr) {
        round_to_bfloat16(update, count, params.stack_bfloat16 + stack);
      }
    }
  }
}

void muon_apply_cpu(const MuonParams& params, int64_t begin, int64_t end) {
  TESSERA_CHECK(begin >= 0 && begin <= end && end <= muon_block_count(params));
  TESSERA_CHECK((params.stack_float == nullptr) != (params.stack_bfloat16 == nullptr));
  for (int64_t index = begin; index < end; ++index) {
    const MuonBlock block = muon_block(params, index);
    for (int64_t done = 0; done < block.count; done += kRun) {
      const int64_t count = std::min(kRun, block.count - done);
      const int64_t flat = block.flat + done, stack = block.stack + done;
      if (params.norm->finite != 0) {
        float widened[kRun];
        const float* direction = widened;
        if (params.stack_float != nullptr) {
          direction = params.stack_float + stack;
        } else {
          widen_bfloat16(params.stack_bfloat16 + stack, count, widened);
        }
        apply_run(params, count, direction, params.values + flat);
      }
      write_weights(params.values, flat, count, {params.weights_float, params.weights_bfloat16});
    }
  }
}

}  // namespace tessera::kernels
