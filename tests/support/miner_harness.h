// One miner's state machine with everything around it in the hands of the test: what it asks for
// waits in queues until the test answers. Replica r of stage s is miner 10 s + r with key
// node_of(10 s + r); the miner itself is replica 0.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/small_run.h"
#include "tessera/core/frame.h"
#include "tessera/core/miner.h"
#include "tessera/core/payload_name.h"

namespace tessera::test {

class MinerHarness {
 public:
  static constexpr const char* kRunId = "0123456789abcdef";
  static constexpr TimeMs kUnixOffsetMs = 1000000;

  MinerHarness(const core::RunSpec& run, StageIndex at) : spec(run), stage(at) {
    core::MinerIdentity identity;
    identity.index = 10 * at;
    identity.incarnation = 77;
    identity.run_id = kRunId;
    identity.unix_offset_ms = kUnixOffsetMs;
    identity.lease_key = node_of(99);
    identity.sign = signature_of;
    identity.verify = [this](const NodeId& signer, std::string_view bytes, const Signature& signature) {
      ++verified;
      return signer == node_of(99) && signature == signature_of(bytes);
    };
    miner = std::make_unique<core::Miner>(run, std::move(identity));
  }

  // The same whoever signs.
  static Signature signature_of(std::string_view bytes) {
    Signature signature{};
    const Digest digest = digest_of(bytes);
    std::copy(digest.bytes.begin(), digest.bytes.end(), signature.begin());
    return signature;
  }

  void step(core::MinerEvent event) {
    for (core::MinerEffect& effect : miner->step(now, std::move(event))) take(std::move(effect));
  }
  void pass(TimeMs ms) {
    now += ms;
    step(core::miner_event::Ticked{});
  }

  // ---- the orchestrator ----
  core::SyncAnswer empty_answer() const {
    core::SyncAnswer answer;
    answer.phase = core::RunPhase::kRunning;
    return answer;
  }
  void answer(core::SyncAnswer what) { step(core::miner_event::AnswerArrived{std::move(what)}); }
  std::vector<core::Peer> all_peers(uint32_t replicas = 2) const {
    std::vector<core::Peer> peers;
    for (StageIndex s = 0; s < spec.pipeline.stages; ++s) {
      if (s + 1 != stage && s != stage + 1) continue;
      for (uint32_t r = 0; r < replicas; ++r)
        peers.push_back({10 * s + r, node_of(10 * s + r), s, "peer:1", true});
    }
    return peers;
  }
  void give_peers(std::vector<core::Peer> peers) {
    core::SyncAnswer what = empty_answer();
    what.peers = std::move(peers);
    what.peers_version = ++peers_version;
    answer(std::move(what));
  }
  void assign(core::Assignment assignment) {
    core::SyncAnswer what = empty_answer();
    assignment.stage = stage;
    what.assignment = assignment;
    answer(std::move(what));
  }
  // Assigned, loaded from the seed, ready, with two neighbours at each side.
  void start() {
    give_peers(all_peers());
    assign({});
    load();
    ASSERT_EQ(miner->phase(), core::MinerPhase::kReady);
  }
  void load() {
    const auto fetch = take_background<core::miner_effect::FetchState>();
    core::miner_event::StateFetched fetched;
    if (!fetch.assignment.state.is_zero()) fetched.masters = values();
    if (!fetch.assignment.local_state.is_zero())
      fetched.local_state = std::make_shared<core::LocalState>();
    fetched.state = fetch.assignment.state;
    step(fetched);
    finish_job();
    if (!background.empty() &&
        std::holds_alternative<core::miner_effect::AdoptBase>(background.front())) {
      background.pop_front();
      step(core::miner_event::BaseAdopted{digest_of("seed")});
    }
  }
  void lease(MicrobatchId id, uint32_t attempt = 0, uint64_t counted_stages = 0,
             std::vector<MinerIndex> pathway = {}, bool repair = false) {
    if (pathway.empty()) {
      for (StageIndex s = 0; s < spec.pipeline.stages; ++s) pathway.push_back(10 * s);
    }
    core::SyncAnswer what = empty_answer();
    what.lease_request = miner->report().lease_request;
    what.leases.push_back({id, attempt, counted_stages, pathway, spec.timeouts.lease_ms, repair, expiry()});
    what.leases.back().signature = signature_of(what.leases.back().signed_bytes(kRunId));
    answer(std::move(what));
  }
  void direct(core::MergeDirective directive) {
    core::SyncAnswer what = empty_answer();
    what.merge = std::move(directive);
    answer(std::move(what));
  }

  // ---- peers ----
  core::Admission forward_arrives(MicrobatchId id, uint32_t attempt = 0, uint32_t from = 0,
                                  uint64_t counted_stages = 0, std::vector<uint8_t> repairs = {}) {
    core::Frame frame = frame_of(id, attempt, core::Direction::kForward, stage - 1);
    frame.counted_stages = counted_stages;
    frame.repairs = std::move(repairs);
    frame.tokens.assign(spec.training.microbatch_size * (spec.model.context + 1), 1);
    for (StageIndex s = 0; s < spec.pipeline.stages; ++s) frame.pathway.push_back(10 * s);
    sign_lease(&frame);
    return arrive(std::move(frame), 10 * (stage - 1) + from);
  }
  // As the orchestrator would have.
  void sign_lease(core::Frame* frame) const {
    frame->lease_expires_unix_ms = expiry();
    frame->lease_signature = signature_of(core::lease_of(*frame).signed_bytes(kRunId));
  }
  TimeMs expiry() const { return kUnixOffsetMs + 100 + spec.timeouts.lease_ms; }
  core::Admission backward_arrives(MicrobatchId id, uint32_t attempt = 0, uint32_t from = 0) {
    return arrive(frame_of(id, attempt, core::Direction::kBackward, stage),
                  10 * (stage + 1) + from);
  }
  core::Admission arrive(core::Frame frame, MinerIndex from) {
    core::miner_event::FrameArrived event;
    event.payload_hash = core::name_of(core::BoundaryPayload{frame.exponent, frame.payload});
    event.frame = std::move(frame);
    event.sender = node_of(from);
    event.reply = ++last_reply;
    step(std::move(event));
    const auto reply = replies.find(last_reply);
    EXPECT_NE(reply, replies.end());
    return reply == replies.end() ? core::Admission::kFull : reply->second;
  }
  core::Frame frame_of(MicrobatchId id, uint32_t attempt, core::Direction direction,
                       StageIndex boundary) const {
    core::Frame frame;
    frame.run = miner->run_tag();
    frame.microbatch = id;
    frame.attempt = attempt;
    frame.boundary = static_cast<uint16_t>(boundary);
    frame.direction = direction;
    frame.lifetime_ms = spec.timeouts.lease_ms;
    frame.payload = "payload";
    return frame;
  }
  // The answer to the oldest frame sent.
  void frame_answered(core::Admission admission) {
    ASSERT_FALSE(sends.empty());
    const uint64_t send = sends.front().send;
    sends.pop_front();
    step(core::miner_event::FrameAnswered{send, admission});
  }

  // The answer to the oldest probe.
  void probe_answered(bool ok, core::PeerHealth health = {}) {
    ASSERT_FALSE(probes.empty());
    const uint64_t probe = probes.front().probe;
    probes.pop_front();
    step(core::miner_event::ProbeAnswered{probe, ok, health});
  }
  void peer_broke(MinerIndex index) { step(core::miner_event::PeerBroken{node_of(index)}); }

  // ---- threads ----
  void tokens_read() {
    ASSERT_FALSE(reads.empty());
    core::miner_event::TokensRead event;
    event.key = reads.front().key;
    event.tokens.assign(spec.training.microbatch_size * (spec.model.context + 1), 1);
    reads.pop_front();
    step(std::move(event));
  }
  template <class Job>
  bool next_job_is() const {
    return !jobs.empty() && std::holds_alternative<Job>(jobs.front());
  }
  // The compute thread does its next job. Discards have no answer and are only noted.
  void finish_job() {
    ASSERT_FALSE(jobs.empty());
    const core::ComputeJob job = std::move(jobs.front());
    jobs.pop_front();
    std::visit([this](const auto& j) { done(j); }, job);
  }
  // A backward in two parts: what it would send, and its end.
  void input_gradient_ready(MicrobatchId id, uint32_t attempt = 0) {
    core::miner_event::InputGradientReady event;
    event.key = {id, attempt};
    event.input_gradient = {4, "early"};
    event.gradient_hash = digest_of("early");
    step(std::move(event));
  }
  void weight_gradients_done(MicrobatchId id, uint32_t attempt = 0) {
    core::miner_event::BackwardDone event;
    event.key = {id, attempt};
    event.milliseconds = 6;
    step(std::move(event));
  }
  template <class Job>
  Job take_background() {
    EXPECT_FALSE(background.empty());
    const Job job = std::get<Job>(background.front());
    background.pop_front();
    return job;
  }
  core::Values values() const { return std::make_shared<const std::vector<float>>(4, 1.0f); }
  bool was_said(const std::string& part) const {
    for (const std::string& text : said) {
      if (text.find(part) != std::string::npos) return true;
    }
    return false;
  }

  const core::RunSpec spec;
  const StageIndex stage;
  TimeMs now = 100;
  std::unique_ptr<core::Miner> miner;
  std::deque<core::miner_effect::SendFrame> sends;
  std::deque<core::miner_effect::Probe> probes;
  std::deque<core::miner_effect::ReadTokens> reads;
  std::deque<core::ComputeJob> jobs;
  std::deque<core::BackgroundJob> background;
  std::map<uint64_t, core::Admission> replies;
  std::vector<core::MicrobatchKey> discarded;
  std::vector<std::string> said;
  std::string left;
  uint64_t weight_version = 0;
  std::vector<core::WeightVersion> older_weights;  // that the engine would have
  uint64_t last_reply = 0;
  uint64_t peers_version = 0;
  uint64_t verified = 0;                           // signatures that were looked at

 private:
  void take(core::MinerEffect effect) {
    if (auto* reply = std::get_if<core::miner_effect::ReplyAdmission>(&effect)) {
      replies[reply->reply] = reply->admission;
    } else if (auto* send = std::get_if<core::miner_effect::SendFrame>(&effect)) {
      sends.push_back(std::move(*send));
    } else if (auto* probe = std::get_if<core::miner_effect::Probe>(&effect)) {
      probes.push_back(std::move(*probe));
    } else if (auto* read = std::get_if<core::miner_effect::ReadTokens>(&effect)) {
      reads.push_back(*read);
    } else if (auto* job = std::get_if<core::ComputeJob>(&effect)) {
      if (auto* discard = std::get_if<core::miner_effect::Discard>(job)) {
        discarded.push_back(discard->key);
      } else {
        jobs.push_back(std::move(*job));
      }
    } else if (auto* work = std::get_if<core::BackgroundJob>(&effect)) {
      background.push_back(std::move(*work));
    } else if (auto* leave = std::get_if<core::miner_effect::Leave>(&effect)) {
      left = leave->reason;
    } else {
      said.push_back(std::get<core::miner_effect::Say>(effect).text);
    }
  }

  void done(const core::miner_effect::Forward& job) {
    core::miner_event::ForwardDone event;
    event.key = job.key;
    if (stage + 1 < spec.pipeline.stages) {
      event.output = {3, "activation"};
      event.output_hash = digest_of("activation");
    } else {
      event.loss = 2.5;
    }
    event.weight_version = weight_version;
    event.milliseconds = 4;
    step(std::move(event));
  }
  void done(const core::miner_effect::Backward& job) {
    core::miner_event::BackwardDone event;
    event.key = job.key;
    if (stage > 0) event.input_gradient = {1, "gradient"};
    event.gradient_hash = digest_of("gradient");
    event.milliseconds = 6;
    step(std::move(event));
  }
  void done(const core::miner_effect::Discard&) {}
  void done(const core::miner_effect::OptimizerStep&) {
    step(core::miner_event::StepDone{true, 0.5, ++weight_version, ""});
  }
  void done(const core::miner_effect::InstallState& job) {
    core::miner_event::StateInstalled event;
    event.weight_version = ++weight_version;
    if (!job.masters && !job.local_state) event.initial_masters = values();
    step(std::move(event));
  }
  void done(const core::miner_effect::TakeSnapshot& job) {
    core::SharedMoments moments;
    if (job.with_moments) moments = std::make_shared<const core::Moments>();
    step(core::miner_event::SnapshotTaken{job.target, values(), weight_version, moments});
  }
  void done(const core::miner_effect::ApplyBase& job) {
    step(core::miner_event::BaseApplied{job.target, ++weight_version});
  }
  void done(const core::miner_effect::ExportSegment& job) {
    core::miner_event::SegmentExported event;
    event.number = job.number;
    event.state = std::make_shared<core::LocalState>();
    event.older = older_weights;
    event.milliseconds = 1.5;
    step(std::move(event));
  }
  void done(const core::miner_effect::ExportLocalState& job) {
    step(core::miner_event::LocalStateExported{job.id, std::make_shared<core::LocalState>()});
  }
};

// A middle miner takes a forward frame, computes and sends it on; the peer takes it.
inline void forward_through(MinerHarness& harness, MicrobatchId id, uint32_t attempt = 0) {
  ASSERT_EQ(harness.forward_arrives(id, attempt), core::Admission::kAccepted);
  ASSERT_TRUE(harness.next_job_is<core::miner_effect::Forward>());
  harness.finish_job();
  harness.frame_answered(core::Admission::kAccepted);
}

// The gradient comes, is computed and handed on.
inline void backward_through(MinerHarness& harness, MicrobatchId id, uint32_t attempt = 0) {
  ASSERT_EQ(harness.backward_arrives(id, attempt), core::Admission::kAccepted);
  ASSERT_TRUE(harness.next_job_is<core::miner_effect::Backward>());
  harness.finish_job();
  harness.frame_answered(core::Admission::kAccepted);
}

}  // namespace tessera::test
