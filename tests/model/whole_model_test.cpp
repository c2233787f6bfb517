#include "tessera/model/whole_model.h"

#include <cmath>

#include "model/pipeline.h"

namespace tessera::model {
namespace {

using absl::StatusCode;

TEST(WholeModel, HasThePipelinesLoss) {
  for (BoundaryKind kind : {BoundaryKind::kNone, BoundaryKind::kIota, BoundaryKind::kResidual,
                            BoundaryKind::kAnchored}) {
    for (Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt4}) {
      const RunSpec spec = tiny_spec(kind, codec);
      Pipeline pipeline(spec);
      for (uint64_t step = 0; step < 3; ++step) {
        pipeline.train({step, 0}, random_tokens(spec, step));
        pipeline.step(1e-2);
      }
      auto model = value_of(WholeModel::create(spec, pipeline.masters(), "cpu"));
      const std::vector<uint32_t> tokens = random_tokens(spec, 9);
      EXPECT_DOUBLE_EQ(value_of(model->loss(tokens)), pipeline.forward({9, 0}, tokens))
          << core::name_of(kind) << " " << core::name_of(codec);
    }
  }
}

TEST(WholeModel, LogitsGiveTheLossAndArePrefixesOfEachOther) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt8);
  Pipeline pipeline(spec);
  auto model = value_of(WholeModel::create(spec, pipeline.masters(), "cpu", 1));
  const size_t context = spec.model.context, vocab = spec.model.vocab;
  std::vector<uint32_t> window = random_tokens(spec, 4);
  window.resize(context + 1);
  const std::vector<uint32_t> ids(window.begin(), window.end() - 1);
  const std::vector<float> logits = value_of(model->logits(ids));
  ASSERT_EQ(logits.size(), context * vocab);
  double loss = 0;
  for (size_t row = 0; row < context; ++row) {
    double sum = 0;
    for (size_t id = 0; id < vocab; ++id)
      sum += std::exp(static_cast<double>(logits[row * vocab + id]));
    loss += std::log(sum) - logits[row * vocab + window[row + 1]];
  }
  EXPECT_NEAR(value_of(model->loss(window)), loss / static_cast<double>(context), 1e-5);

  // Causal: a prefix has the same logits, but for the last bits (the wire's frame exponent is per
  // call, its values are not).
  for (size_t length : {size_t{1}, size_t{5}, context}) {
    const std::vector<float> last =
        value_of(model->last_logits({ids.begin(), ids.begin() + static_cast<int64_t>(length)}));
    ASSERT_EQ(last.size(), vocab);
    for (size_t id = 0; id < vocab; ++id)
      EXPECT_NEAR(last[id], logits[(length - 1) * vocab + id], 2e-5) << length;
  }
}

TEST(WholeModel, OneStageAndAPlainEmbedding) {
  RunSpec spec = tiny_spec(BoundaryKind::kNone, Codec::kFp32, 1);
  spec.model.embedding_norm = false;
  Pipeline pipeline(spec);
  const std::vector<uint32_t> tokens = random_tokens(spec, 1);
  const double before = pipeline.train({1, 0}, tokens);
  pipeline.step(1e-2);
  auto model = value_of(WholeModel::create(spec, pipeline.masters(), "cpu"));
  EXPECT_LT(value_of(model->loss(tokens)), before);
}

TEST(WholeModel, RefusesWhatDoesNotFit) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kInt8);
  std::vector<std::vector<float>> stages;
  for (StageIndex stage = 0; stage < 3; ++stage) stages.push_back(initial_values(spec, stage));
  auto model = value_of(WholeModel::create(spec, stages, "cpu"));
  EXPECT_EQ(model->logits({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(model->logits(std::vector<uint32_t>(13, 1)).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(model->logits({61}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(model->loss(std::vector<uint32_t>(14, 1)).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(model->loss({}).status().code(), StatusCode::kInvalidArgument);
  stages[1].pop_back();
  EXPECT_EQ(WholeModel::create(spec, stages, "cpu").status().code(), StatusCode::kInvalidArgument);
  stages.pop_back();
  EXPECT_EQ(WholeModel::create(spec, stages, "cpu").status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tessera::model
