// The CPU's halves of Muon against the formulas in double precision: which numbers of the flat
// vector and of the stack they touch, and what they write there.
#include <gtest/gtest.h>

#include <bit>

#include "kernels/guarded.h"
#include "kernels/optimizer_fixture.h"

namespace tessera::kernels {
namespace {

float widened(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Both halves over guarded arrays; Newton-Schulz is a change of sign here.
class GuardedMuon {
 public:
  GuardedMuon(const MuonCase& which, const AdamState& state, bool wide_stack)
      : which_(which),
        wide_stack_(wide_stack),
        state_(state),
        values_(state.values.size()),
        momentum_(state.values.size()),
        weights_float_(state.values.size()),
        weights_bfloat16_(state.values.size()),
        stack_float_(which.offsets.size() * static_cast<size_t>(which.matrix_values)),
        stack_bfloat16_(which.offsets.size() * static_cast<size_t>(which.matrix_values)) {
    std::copy(state.values.begin(), state.values.end(), values_.data());
    std::copy(state.values.begin(), state.values.end(), weights_float_.data());
    std::copy(state.first.begin(), state.first.end(), momentum_.data());
  }
  void run(const GradientNorm& norm) {
    MuonParams params = muon_params(which_);
    params.offsets = which_.offsets.data();
    params.gradient.flat = state_.gradient.data();
    params.momentum = momentum_.data();
    params.values = values_.data();
    params.weights_float = weights_float_.data();
    params.weights_bfloat16 = weights_bfloat16_.data();
    if (wide_stack_) {
      params.stack_float = stack_float_.data();
    } else {
      params.stack_bfloat16 = stack_bfloat16_.data();
    }
    params.norm = &norm;
    const int64_t blocks = muon_block_count(params);
    muon_momentum_cpu(params, blocks / 2, blocks);  // as two threads would
    muon_momentum_cpu(params, 0, blocks / 2);
    update_ = stack();
    for (size_t i = 0; i < update_.size(); ++i) {
      stack_float_.data()[i] = -update_[i];
      if (!wide_stack_) stack_bfloat16_.data()[i] ^= 0x8000u;
    }
    muon_apply_cpu(params, 0, blocks);
  }
  std::vector<float> stack() const {
    if (wide_stack_) return stack_float_.copy();
    std::vector<float> numbers;
    for (const uint16_t bits : stack_bfloat16_.copy()) numbers.push_back(widened(bits));
    return numbers;
  }
  const std::vector<float>& update() const { return update_; }
  std::vector<float> values() const { return values_.copy(); }
  std::vector<float> momentum() const { return momentum_.copy(); }
  std::vector<float> weights() const { return weights_float_.copy(); }
  std::vector<uint16_t> rounded_weights() const { return weights_bfloat16_.copy(); }

 private:
  MuonCase which_;
  bool wide_stack_;
  AdamState state_;
  Guarded<float> values_, momentum_, weights_float_;
  Guarded<uint16_t> weights_bfloat16_;
  Guarded<float> stack_float_;
  Guarded<uint16_t> stack_bfloat16_;
  std::vector<float> update_;
};

TEST(Muon, HalvesAreTheFormulasInDoublePrecision) {
  for (const MuonCase& which : muon_cases()) {
    for (const bool wide_stack : {true, false}) {
      const AdamState state = random_state(which.count, 3);
      GuardedMuon muon(which, state, wide_stack);
      muon.run({1, 0.5f, 1});
      std::vector<float> values = state.values, momentum = state.first;
      const std::vector<float> new_values = muon.values(), new_momentum = muon.momentum(),
                               weights = muon.weights();
      const std::vector<uint16_t> rounded = muon.rounded_weights();
      const double stack_error = wide_stack ? 1e-6 : 1.0 / 256;
      for (size_t k = 0; k < which.offsets.size(); ++k) {
        for (int64_t j = 0; j < which.matrix_values; ++j) {
          const size_t at = static_cast<size_t>(which.offsets[k] + j);
          const size_t slot = k * static_cast<size_t>(which.matrix_values) + static_cast<size_t>(j);
          const double g = 0.5 * state.gradient[at];
          const double m = 0.95 * state.first[at] + 0.05 * g;
          const double update = 0.95 * m + 0.05 * g;
          ASSERT_NEAR(new_momentum[at], m, 1e-6) << at;
          ASSERT_NEAR(muon.update()[slot], update, 1e-6 + stack_error * std::abs(update)) << at;
          ASSERT_NEAR(new_values[at], 0.99 * state.values[at] + 0.03 * muon.update()[slot], 1e-6);
          ASSERT_EQ(weights[at], new_values[at]);
          ASSERT_NEAR(widened(rounded[at]), new_values[at], std::abs(new_values[at]) / 256);
          values[at] = new_values[at];
          momentum[at] = new_momentum[at];
        }
      }
      // Nothing else of the flat vector has moved.
      EXPECT_EQ(new_values, values);
      EXPECT_EQ(new_momentum, momentum);
    }
  }
}

TEST(Muon, TakesAGradientInPieces) {
  for (const MuonCase& which : muon_cases()) {
    const AdamState state = random_state(which.count, 3);
    const GradientNorm norm{1, 0.5f, 1};
    const PiecesOfMuon apart(which, state.gradient);
    std::vector<std::vector<float>> stacks, momenta;
    for (const bool in_pieces : {false, true}) {
      std::vector<float>& momentum = momenta.emplace_back(state.first);
      std::vector<float>& stack = stacks.emplace_back(which.offsets.size() *
                                                      static_cast<size_t>(which.matrix_values));
      MuonParams params = muon_params(which);
      params.offsets = which.offsets.data();
      params.momentum = momentum.data();
      params.stack_float = stack.data();
      params.norm = &norm;
      if (in_pieces) {
        params.gradient.pieces = apart.places.data();
        params.gradient_pieces = apart.piece_of.data();
        params.gradient_offsets = apart.offset_in.data();
      } else {
        params.gradient.flat = state.gradient.data();
      }
      muon_momentum_cpu(params, 0, muon_block_count(params));
    }
    EXPECT_EQ(stacks[1], stacks[0]);
    EXPECT_EQ(momenta[1], momenta[0]);
  }
}

TEST(Muon, WithoutAFiniteNormOnlyWritesTheComputeWeights) {
  for (const MuonCase& which : muon_cases()) {
    for (const bool wide_stack : {true, false}) {
      AdamState state = random_state(which.count, 3);
      state.gradient[static_cast<size_t>(which.offsets[0])] =
          std::numeric_limits<float>::quiet_NaN();
      GuardedMuon muon(which, state, wide_stack);
      muon.run({0, 0, 0});
      EXPECT_EQ(muon.values(), state.values);
      EXPECT_EQ(muon.momentum(), state.first);
      EXPECT_EQ(muon.weights(), state.values);
      for (const float number : muon.update()) ASSERT_EQ(number, 0);
    }
  }
}

}  // namespace
}  // namespace tessera::kernels
