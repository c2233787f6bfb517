// What the tests of the merge's wire formats share: numbers of every kind, and guarded calls.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/guarded.h"
#include "tessera/base/prng.h"
#include "tessera/kernels/merge_wire.h"

namespace tessera::kernels {

inline constexpr Codec kMergeFormats[] = {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4};

// Around groups and blocks.
inline constexpr uint64_t kRunValues[] = {0, 1, 2, 3, 5, 255, 256, 257, 511, 512, 513, 1023, 4099};

struct MergeCase {
  MergeRun run;
  bool stochastic = false;
  uint64_t seed = 1;
  uint64_t first_block = 0;
};

// Values of a pseudo-gradient: mostly small, groups of zeros, subnormals, huge ones.
inline std::vector<float> merge_values(uint64_t count, uint64_t seed) {
  Prng random(seed);
  std::vector<float> values(count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t group = i / kMergeGroup;
    const float uniform = static_cast<float>(2 * random.uniform() - 1);
    switch ((group + seed) % 7) {
      case 5:
        values[i] = uniform * 3e38f;
        break;
      case 6:
        values[i] = uniform * 1e-39f;
        break;
      case 4:
        values[i] = 0.0f;
        break;
      default:
        values[i] = uniform * uniform * uniform * 1e-3f;
    }
  }
  return values;
}

inline std::vector<uint8_t> merge_encoded(const MergeCase& c, const std::vector<float>& input) {
  Guarded<uint8_t> payload(merge_run_bytes(c.run.format, c.run.values, c.run.block_values));
  merge_encode_cpu({.run = c.run,
                    .input = input.data(),
                    .stochastic = c.stochastic,
                    .seed = c.seed,
                    .first_block = c.first_block,
                    .payload = payload.data()});
  return payload.copy();
}

inline std::vector<float> merge_decoded(const MergeRun& run, const std::vector<uint8_t>& payload) {
  Guarded<float> out(run.values);
  merge_decode_cpu({.run = run, .payload = payload.data(), .assign = true, .sum = out.data()});
  return out.copy();
}

inline std::string describe(const MergeCase& c) {
  return "format " + std::to_string(static_cast<int>(c.run.format)) + ", " +
         std::to_string(c.run.values) + " values in blocks of " +
         std::to_string(c.run.block_values) + (c.stochastic ? ", stochastic" : "");
}

template <class T>
void expect_same_bytes(const std::vector<T>& actual, const std::vector<T>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(std::memcmp(&actual[i], &expected[i], sizeof(T)), 0)
        << "element " << i << " of " << expected.size() << ": " << +actual[i] << " instead of "
        << +expected[i];
  }
}

}  // namespace tessera::kernels
