// Merges that average the optimizer moments too: what goes up, what the gate sees of it, what every replica gets back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/memory_ports.h"
#include "support/small_run.h"
#include "support/whole_upload.h"
#include "tessera/core/merge_planes.h"
#include "tessera/core/stage_layout.h"
#include "tessera/node/background_jobs.h"
#include "tessera/node/compute_jobs.h"
#include "tessera/node/merge_reduce.h"
#include "tessera/node/objects.h"
#include "tessera/sim/simulated_engine.h"

namespace tessera::node {
namespace {

const std::string kRun = "0123456789abcdef";

std::vector<float> wave(uint64_t count, float scale, uint64_t shift) {
  std::vector<float> values(count);
  for (uint64_t i = 0; i < count; ++i) values[i] = scale * std::sin(static_cast<float>(i * 7 + shift));
  return values;
}

class MergeMomentsTest : public testing::Test {
 protected:
  MergeMomentsTest() {
    spec_.merge.optimizer_moments = core::MergeMoments::kAverage;
    set_formats(Codec::kFp32);
  }
  void set_formats(Codec format) { spec_.merge.upload_format = spec_.merge.result_format = format; }
  uint64_t values() const { return core::stage_value_count(spec_, 0); }
  uint64_t begin_of(uint64_t plane) const { return core::plane_begin(spec_.merge, values(), plane); }

  core::SharedMoments moments_of(float scale) const {
    core::Moments moments{wave(values(), scale, 1), wave(values(), scale, 3)};
    for (float& value : moments.second) value *= value;
    return std::make_shared<const core::Moments>(std::move(moments));
  }
  Digest upload(float scale, const core::Moments& moments) {
    return test::upload_delta(blobs_, spec_.merge, base_, wave(values(), scale, 0), {}, &moments)->object;
  }
  ReduceInputs inputs(const std::vector<Digest>& objects) const {
    ReduceInputs inputs{.stage_values = values(), .merge = spec_.merge, .rounding_key = core::merge_rounding_key(kRun, 0, 1)};
    for (const Digest& object : objects) inputs.uploads.push_back({object, 1.0f / static_cast<float>(objects.size())});
    return inputs;
  }
  // In shards that end anywhere, also across planes.
  std::vector<core::ShardResult> reduce(const ReduceInputs& inputs, std::vector<core::UploadMeasure>* measures = nullptr) {
    std::vector<core::ShardResult> results;
    for (uint64_t first = 0, count; first < inputs.blocks(); first += count) {
      count = std::min<uint64_t>(2, inputs.blocks() - first);
      const auto shard = reduce_shard(blobs_, inputs, {.first_block = first, .block_count = count, .token = digest_of("owner")});
      EXPECT_TRUE(shard.ok()) << shard.status();
      results.push_back({first, count, shard->result, {{shard->object, digest_of("owner")}}});
      if (measures == nullptr) continue;
      measures->resize(shard->measures.size());
      for (size_t k = 0; k < measures->size(); ++k) (*measures)[k].add(shard->measures[k]);
    }
    return results;
  }
  std::vector<float> merged(const std::vector<Digest>& objects) {
    KeptBlobs link(blobs_);
    const auto mean = fetch_mean(link, spec_.merge, values(), reduce(inputs(objects)));
    EXPECT_TRUE(mean.ok()) << mean.status();
    return *mean;
  }
  core::Moments taken(const std::vector<float>& planes) const {
    return merged_moments(spec_, core::stage_layout(spec_, 0), planes);
  }

  core::RunSpec spec_ = test::small_spec(1, 1);
  test::MemoryBlobs blobs_;
  const std::vector<float> base_ = std::vector<float>(values(), 0.5f);
};

TEST_F(MergeMomentsTest, EveryPlaneBeginsWithABlock) {
  const uint64_t block = spec_.merge.block_values;
  ASSERT_NE(values() % block, 0u);
  EXPECT_EQ(core::merged_blocks(spec_.merge, values()), 3 * core::plane_blocks(spec_.merge, values()));
  EXPECT_EQ(core::merged_values(spec_.merge, values()), 2 * core::plane_blocks(spec_.merge, values()) * block + values());
  core::MergeSpec local = spec_.merge;
  for (const auto moments : {core::MergeMoments::kLocal, core::MergeMoments::kReset}) {
    local.optimizer_moments = moments;
    EXPECT_EQ(core::merged_values(local, values()), values());
    EXPECT_EQ(core::merged_blocks(local, values()), core::plane_blocks(local, values()));
  }
}

TEST_F(MergeMomentsTest, PlanesOfAnUploadAreReadBack) {
  const core::SharedMoments moments = moments_of(0.25f);
  const std::vector<float> snapshot = wave(values(), 1, 0);
  const auto read = fetch_upload(blobs_, spec_.merge, values(), upload(1, *moments));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), core::merged_values(spec_.merge, values()));
  for (uint64_t i = 0; i < values(); ++i) {
    ASSERT_EQ((*read)[i], base_[i] - snapshot[i]);
    ASSERT_EQ((*read)[begin_of(1) + i], moments->first[i]);
    ASSERT_EQ((*read)[begin_of(2) + i], std::sqrt(moments->second[i]));
  }
  for (const uint64_t plane : {1, 2}) {
    for (uint64_t i = begin_of(plane - 1) + values(); i < begin_of(plane); ++i) ASSERT_EQ((*read)[i], 0.0f);
  }
  EXPECT_EQ(taken(*read).first, moments->first);
}

TEST_F(MergeMomentsTest, OnlyThePseudoGradientHasAResidual) {
  set_formats(Codec::kInt4);
  const std::vector<float> snapshot = wave(values(), 1, 0);
  const auto with = test::upload_delta(blobs_, spec_.merge, base_, snapshot, {}, moments_of(100).get());
  core::MergeSpec local = spec_.merge;
  local.optimizer_moments = core::MergeMoments::kLocal;
  const auto without = test::upload_delta(blobs_, local, base_, snapshot, {});
  EXPECT_EQ(with->residual, without->residual);
}

TEST_F(MergeMomentsTest, TheGateSeesThePseudoGradientOnly) {
  std::vector<core::UploadMeasure> small, large, local;
  const std::vector<Digest> honest = {upload(1, *moments_of(1)), upload(2, *moments_of(1)), upload(3, *moments_of(1))};
  reduce(inputs(honest), &small);
  reduce(inputs({honest[0], honest[1], upload(3, *moments_of(1e6f))}), &large);
  EXPECT_EQ(encode(small), encode(large));
  spec_.merge.optimizer_moments = core::MergeMoments::kLocal;
  reduce(inputs({upload(1, {}), upload(2, {}), upload(3, {})}), &local);
  for (size_t k = 0; k < local.size(); ++k) {
    EXPECT_NEAR(small[k].energy, local[k].energy, 1e-9 * local[k].energy);
    EXPECT_NEAR(small[k].alignment, local[k].alignment, 1e-9 * local[k].energy);
  }
}

TEST_F(MergeMomentsTest, AMomentThatIsNoNumberMarksItsUploadAndNoOther) {
  for (const Codec format : {Codec::kFp32, Codec::kInt8}) {
    set_formats(format);
    core::Moments bad = *moments_of(1);
    bad.second[40] = INFINITY;
    std::vector<core::UploadMeasure> measures;
    reduce(inputs({upload(1, *moments_of(1)), upload(1, bad)}), &measures);
    EXPECT_TRUE(measures[0].is_finite());
    EXPECT_FALSE(measures[1].is_finite());
  }
}

TEST_F(MergeMomentsTest, ATrimmedMeanTrimsMomentsToo) {
  spec_.merge.trim_share = 0.34;
  const std::vector<float> planes = merged({upload(1, *moments_of(1e6f)), upload(1, *moments_of(2)), upload(1, *moments_of(1))});
  const core::SharedMoments middle = moments_of(2);
  EXPECT_EQ(taken(planes).first, middle->first);
}

TEST_F(MergeMomentsTest, ASecondMomentIsNeverLessThanTheSquareOfTheFirst) {
  // A root so far below the largest of its group that rounding makes it zero, under a first moment that stays.
  core::Moments moments{std::vector<float>(values(), 0.5f), std::vector<float>(values(), 0.25f)};
  moments.second[3] = 1e6f;
  moments.second[300] = 1.0f;  // of another group
  set_formats(Codec::kInt8);
  const std::vector<float> planes = merged({upload(1, moments)});
  EXPECT_EQ(planes[begin_of(2) + 4], 0.0f);
  const core::Moments result = taken(planes);
  EXPECT_EQ(result.second[4], result.first[4] * result.first[4]);
  EXPECT_NEAR(result.second[300], 1.0f, 0.01f);
  for (uint64_t i = 0; i < values(); ++i) ASSERT_GE(result.second[i], result.first[i] * result.first[i]);
}

// Nothing that passes the gate may end an engine, which refuses what is not finite.
TEST_F(MergeMomentsTest, MomentsBeyondAllMeasureStayNumbers) {
  const core::Moments vast{std::vector<float>(values(), -1e38f), std::vector<float>(values(), 3e38f)};
  const core::Moments result = taken(merged({upload(1, vast)}));
  for (uint64_t i = 0; i < values(); ++i) ASSERT_TRUE(std::isfinite(result.first[i]) && std::isfinite(result.second[i]));
}

TEST_F(MergeMomentsTest, MatricesOfMuonKeepSecondMomentsOfZero) {
  spec_.training.optimizer = core::OptimizerKind::kMuon;
  set_formats(Codec::kInt8);
  core::Moments moments{std::vector<float>(values(), 0.5f), std::vector<float>(values(), 1.0f)};
  const std::vector<core::TensorLayout> layout = core::stage_layout(spec_, 0);
  for (const core::TensorLayout& tensor : layout) {
    for (uint64_t i = 0; core::is_for_muon(tensor) && i < tensor.count; ++i) moments.second[tensor.offset + i] = 0;
  }
  const core::Moments result = taken(merged({upload(1, moments), upload(2, moments)}));
  uint64_t of_muon = 0;
  for (const core::TensorLayout& tensor : layout) {
    for (uint64_t i = tensor.offset; i < tensor.offset + tensor.count; ++i) {
      ASSERT_EQ(result.second[i] == 0, core::is_for_muon(tensor)) << tensor.name;
    }
    of_muon += core::is_for_muon(tensor) ? tensor.count : 0;
  }
  EXPECT_GT(of_muon, 0u);
}

// ---- replicas ---------------------------------------------------------------------------------------------------------

class Replica {
 public:
  Replica(const core::RunSpec& spec, ports::BlobLink& blobs, const Digest& state)
      : jobs_(spec, blobs, "", kRun, [this](core::MinerEvent event) { events_.push_back(std::move(event)); }),
        engine_([&spec] { return std::make_unique<sim::SimulatedEngine>(spec, 0); },
                [this](core::MinerEvent event) { events_.push_back(std::move(event)); },
                [](const Status& status) { ADD_FAILURE() << status; }, [] { return 0.0; }) {
    core::Assignment assignment;
    assignment.state = state;
    run<core::miner_event::StateFetched>(core::miner_effect::FetchState{assignment});
  }
  template <class Answer>
  Answer run(core::BackgroundJob job) {
    jobs_.run(job);
    return std::get<Answer>(events_.back());
  }
  template <class Answer>
  Answer compute(core::ComputeJob job) {
    engine_.run(job);
    return std::get<Answer>(events_.back());
  }
  // Its own past.
  void train(const core::LocalState& state) {
    compute<core::miner_event::StateInstalled>(
        core::miner_effect::InstallState{nullptr, std::make_shared<const core::LocalState>(state)});
  }
  Digest upload() {
    const auto snapshot = compute<core::miner_event::SnapshotTaken>(core::miner_effect::TakeSnapshot{1, true});
    return run<core::miner_event::DeltaUploaded>(
               core::miner_effect::UploadDelta{1, snapshot.masters, 1, snapshot.weight_version, 0, 1, snapshot.moments})
        .commit.object;
  }
  core::LocalState apply(const core::miner_effect::PrepareBase& merge, uint64_t age) {
    const auto prepared = run<core::miner_event::BasePrepared>(merge);
    EXPECT_TRUE(prepared.ok) << prepared.why;
    state = prepared.state;
    compute<core::miner_event::BaseApplied>(
        core::miner_effect::ApplyBase{1, prepared.base, prepared.reference, false, prepared.moments, age});
    return *compute<core::miner_event::LocalStateExported>(core::miner_effect::ExportLocalState{}).state;
  }

  Digest state;

 private:
  std::vector<core::MinerEvent> events_;
  BackgroundJobs jobs_;
  ComputeJobs engine_;
};

TEST_F(MergeMomentsTest, EveryReplicaHasTheSameMomentsToTheBit) {
  for (const Codec format : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
    set_formats(format);
    const Digest begin = *put_object(blobs_, encode_stage_state(base_, std::vector<float>(values(), 0.0f)));
    Replica first(spec_, blobs_, begin), second(spec_, blobs_, begin), straggler(spec_, blobs_, begin), newcomer(spec_, blobs_, begin);
    const auto trained = [&](float scale, uint64_t steps) {
      const core::SharedMoments moments = moments_of(scale);
      return core::LocalState{.masters = wave(values(), scale, 0), .first_moment = moments->first,
                              .second_moment = moments->second, .optimizer_steps = steps};
    };
    first.train(trained(0.4f, 900));
    second.train(trained(0.3f, 20));
    straggler.train(trained(0.2f, 7));
    const std::vector<float> zeros(values(), 0.0f);
    newcomer.train({.masters = base_, .first_moment = zeros, .second_moment = zeros});

    const ReduceInputs uploads = inputs({first.upload(), second.upload()});
    core::miner_effect::PrepareBase merge{.target = 1, .uploads = uploads.uploads, .results = reduce(uploads),
                                          .participant = true, .outer_learning_rate = 0.7, .outer_momentum = 0.9};
    const core::LocalState expected = first.apply(merge, 50);
    EXPECT_EQ(expected.optimizer_steps, 900u);
    std::vector<core::LocalState> others = {second.apply(merge, 50)};
    merge.participant = false;
    others.push_back(straggler.apply(merge, 50));
    others.push_back(newcomer.apply(merge, 50));
    for (const core::LocalState& other : others) {
      EXPECT_EQ(bytes_of(other.first_moment), bytes_of(expected.first_moment));
      EXPECT_EQ(bytes_of(other.second_moment), bytes_of(expected.second_moment));
      EXPECT_EQ(other.optimizer_steps, 50u);
    }
    EXPECT_EQ(second.state, first.state);
    EXPECT_EQ(straggler.state, first.state);
    EXPECT_EQ(newcomer.state, first.state);
    EXPECT_EQ(bytes_of(others[0].masters), bytes_of(expected.masters));  // neither had trained since its snapshot
    EXPECT_NE(bytes_of(others[1].masters), bytes_of(expected.masters));  // local work is carried over
    double error = 0, energy = 0;
    for (uint64_t i = 0; i < values(); ++i) {
      const double mean = 0.35 * std::sin(static_cast<float>(i * 7 + 1));
      error += (expected.first_moment[i] - mean) * (expected.first_moment[i] - mean);
      energy += mean * mean;
    }
    EXPECT_LT(std::sqrt(error / energy), format == Codec::kInt4 ? 0.2 : 0.02);
  }
}

}  // namespace
}  // namespace tessera::node
