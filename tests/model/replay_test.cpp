// An auditor's engine does what the miner's did, to the last bit, from the state that the miner committed to.
#include <map>

#include "model/pipeline.h"
#include "support/segment_recorder.h"

namespace tessera::model {
namespace {

using core::BoundaryPayload;
using node::ReplayedMicrobatch;
using node::ReplayedSegment;
using node::Segment;
using test::PayloadShelf;
using test::SegmentRecorder;
using testing::HasSubstr;

constexpr double kLearningRate = 1e-2;

// A pipeline whose stages all write down what they do.
struct RecordedPipeline {
  explicit RecordedPipeline(const RunSpec& run) : spec(run), pipeline(run) {
    for (StageIndex s = 0; s < spec.pipeline.stages; ++s) recorders.emplace_back(pipeline.stage(s), s, shelf);
    cut();
  }
  void forward(MicrobatchId microbatch) {
    const std::vector<uint32_t> tokens = random_tokens(spec, microbatch);
    BoundaryPayload payload;
    for (SegmentRecorder& stage : recorders) payload = stage.forward(microbatch, tokens, payload);
  }
  void backward(MicrobatchId microbatch, bool accumulate = true) {
    BoundaryPayload payload;
    for (size_t s = recorders.size(); s-- > 0;) payload = recorders[s].backward(microbatch, payload, accumulate);
  }
  void step() {
    for (SegmentRecorder& stage : recorders) stage.step(kLearningRate);
  }
  std::vector<Segment> cut() {
    std::vector<Segment> segments;
    for (SegmentRecorder& stage : recorders) segments.push_back(stage.cut());
    return segments;
  }

  const RunSpec spec;
  PayloadShelf shelf;
  Pipeline pipeline;
  std::vector<SegmentRecorder> recorders;
};

// Work that overlaps: microbatches 3 and 6 are in flight across steps and across the cut.
struct TwoSegments {
  explicit TwoSegments(RecordedPipeline& run) {
    for (const MicrobatchId id : {1, 2, 3}) run.forward(id);
    run.backward(1);
    run.backward(2);
    run.step();
    run.forward(4);
    run.backward(4);
    first = run.cut();
    masters_between = run.pipeline.masters();
    run.forward(5);
    run.backward(3);  // at the weights before the first step
    run.forward(6);
    run.step();
    run.backward(6);
    run.backward(5, /*accumulate=*/false);
    run.step();
    run.forward(7);
    run.backward(7);
    second = run.cut();
    masters_after = run.pipeline.masters();
  }
  std::vector<Segment> first, second;
  std::vector<std::vector<float>> masters_between, masters_after;
};

std::vector<ReplayedMicrobatch> replay(ports::StageEngine& engine, const Segment& segment, PayloadShelf& shelf,
                                       StatusOr<ReplayedSegment>* result, const std::set<uint64_t>& versions = {}) {
  std::vector<ReplayedMicrobatch> all;
  *result = node::replay_segment(engine, segment, shelf, versions, [&](const ReplayedMicrobatch& done) {
    all.push_back(done);
    return ok_status();
  });
  return all;
}

class Replay : public testing::TestWithParam<std::pair<BoundaryKind, Codec>> {};

TEST_P(Replay, GivesTheMinersBits) {
  RunSpec spec = tiny_spec(GetParam().first, GetParam().second);
  spec.training.deterministic = true;
  RecordedPipeline run(spec);
  const TwoSegments work(run);
  for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
    ASSERT_EQ(work.second[s].older.size(), 1u) << "microbatch 3 is in flight at the cut";
    // An engine that has done other work before: nothing of it may show.
    const auto engine = engine_of(spec, s);
    for (const auto* part : {&work.second, &work.first}) {
      const Segment& segment = (*part)[s];
      StatusOr<ReplayedSegment> result = internal_error("not run");
      const auto replayed = replay(*engine, segment, run.shelf, &result);
      ASSERT_TRUE(result.ok()) << result.status();
      ASSERT_EQ(replayed.size(), segment.receipts.size());
      for (const ReplayedMicrobatch& microbatch : replayed) {
        const core::Receipt& receipt = segment.receipts[microbatch.receipt];
        EXPECT_EQ(core::name_of(microbatch.output), receipt.output_hash) << s << ": " << receipt.microbatch;
        EXPECT_EQ(core::name_of(microbatch.input_gradient), receipt.gradient_out_hash) << s << ": " << receipt.microbatch;
        EXPECT_EQ(static_cast<float>(microbatch.loss), receipt.loss);
      }
      EXPECT_EQ(result->masters, (part == &work.first ? work.masters_between : work.masters_after)[s]);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Boundaries, Replay,
                         testing::Values(std::pair(BoundaryKind::kAnchored, Codec::kInt4),
                                         std::pair(BoundaryKind::kResidual, Codec::kBf16),
                                         std::pair(BoundaryKind::kIota, Codec::kInt8)));

TEST(ReplaySegment, KeepsTheVersionsThatAreAskedFor) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kFp32);
  RecordedPipeline run(spec);
  const TwoSegments work(run);
  const auto engine = engine_of(spec, 1);
  StatusOr<ReplayedSegment> result = internal_error("not run");
  replay(*engine, work.first[1], run.shelf, &result, {0, 1, 9});
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->at_version.size(), 2u);
  EXPECT_EQ(result->at_version[0], work.first[1].start.masters);
  EXPECT_EQ(result->at_version[1], work.masters_between[1]);
}

TEST(ReplaySegment, RefusesALogThatContradictsItself) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kFp32);
  RecordedPipeline run(spec);
  const TwoSegments work(run);
  const std::pair<const char*, std::function<void(Segment&)>> breaks[] = {
      {"weight version", [](Segment& s) { s.receipts[2].weight_version = 7; }},
      {"but the receipts before it have", [](Segment& s) { std::swap(s.receipts.front(), s.receipts.back()); }},
      {"out of order",
       [](Segment& s) {
         s.receipts.push_back(s.receipts.front());
         s.receipts.back().weight_version = 99;  // so that it waits for nobody
       }},
      {"place 3", [](Segment& s) { s.receipts[1].order = 3; }},
      {"microbatches", [](Segment& s) { s.steps[0].microbatches = 1; }},
      {"said to be skipped", [](Segment& s) { s.steps[0].skipped = true; }},
      {"local step", [](Segment& s) { s.steps.pop_back(); }},
  };
  for (const auto& [message, change] : breaks) {
    Segment segment = work.second[1];
    change(segment);
    const auto engine = engine_of(spec, 1);
    StatusOr<ReplayedSegment> result = internal_error("not run");
    replay(*engine, segment, run.shelf, &result);
    EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << message << ": " << result.status();
    EXPECT_THAT(message_of(result.status()), HasSubstr(message));
  }
}

TEST(ReplaySegment, SaysWhichPayloadIsMissing) {
  const RunSpec spec = tiny_spec(BoundaryKind::kAnchored, Codec::kFp32);
  RecordedPipeline run(spec);
  const TwoSegments work(run);
  run.shelf.forget(work.first[1].receipts[1].gradient_in_hash);
  const auto engine = engine_of(spec, 1);
  StatusOr<ReplayedSegment> result = internal_error("not run");
  EXPECT_EQ(replay(*engine, work.first[1], run.shelf, &result).size(), 1u);
  EXPECT_TRUE(absl::IsNotFound(result.status())) << result.status();
}

}  // namespace
}  // namespace tessera::model
