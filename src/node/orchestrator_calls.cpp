// What miners, administrators and the curious ask of an orchestrator.
#include <fmt/format.h>

#include <cmath>

#include "orchestrator_views.h"
#include "tessera/base/log.h"
#include "tessera/node/orchestrator_control.h"

namespace tessera::node {
namespace {

constexpr double kLossWeight = 0.05;        // of the newest loss in the moving average
constexpr TimeMs kPublishedCheckMs = 10000;  // between two looks at what one miner says it has published

}  // namespace

// A restarted process takes its predecessor's place at once. Two that share a key would do so for ever: they get to do it
// only once in miner_lost_ms, so that the journal does not fill with it.
bool OrchestratorControl::takes_over_too_soon(const core::Registration& registration) {
  const auto known = core_.state().by_node.find(registration.node);
  if (known == core_.state().by_node.end()) return false;
  if (core_.state().miners[known->second].registration.incarnation == registration.incarnation) return false;
  const TimeMs monotonic = this->monotonic();
  const auto last = taken_over_at_.find(known->second);
  if (last != taken_over_at_.end() && monotonic - last->second < core_.state().spec.timeouts.miner_lost_ms) return true;
  taken_over_at_[known->second] = monotonic;
  return false;
}

Status OrchestratorControl::handle_register(RegisterCall& call) {
  if (call.caller.node != call.registration.node) {
    answers_.emplace_back([done = std::move(call.done)] {
      done(invalid_argument("a registration must name the key that signed it"));
    });
    return ok_status();
  }
  if (!core_.state().created) {
    answers_.emplace_back([done = std::move(call.done)] { done(unavailable("this orchestrator has no run yet")); });
    return ok_status();
  }
  if (takes_over_too_soon(call.registration)) {
    answers_.emplace_back([done = std::move(call.done)] {
      done(unavailable("another process registered with this key a moment ago; if none was restarted, two processes share a "
                       "key file: give each its own 'directory'"));
    });
    return ok_status();
  }
  core::RegisterAnswer answer = core_.refusal_for(call.registration);
  if (answer.refusal == core::RegisterRefusal::kNone && core_.state().by_node.count(call.registration.node) == 0 &&
      !registration_limit_.admits(call.caller.address, monotonic())) {
    spdlog::warn("registration of {} from {} put off: too many new keys from there", call.caller.node.brief(), call.caller.address);
    answers_.emplace_back([done = std::move(call.done), most = options_.registrations_per_minute] {
      done(error(absl::StatusCode::kResourceExhausted,
                 "{} new keys have registered from this address within a minute, which is all that are admitted; wait, or let "
                 "the orchestrator's operator raise registrations_per_minute", most));
    });
    return ok_status();
  }
  if (answer.refusal == core::RegisterRefusal::kNone) {
    const bool session_is_new = core_.find(call.registration.node, call.registration.incarnation) == nullptr;
    TESSERA_RETURN_IF_ERROR(apply(core::MinerRegistered{call.registration}));
    const core::OrchestratorState& state = core_.state();
    answer.miner = state.by_node.at(call.registration.node);
    answer.session = sessions_[answer.miner] = surroundings_.random_bytes(16);
    surroundings_.registered(call.registration.node, blob_share(state, options_.blob_share_bytes));
    if (session_is_new) blob_asks_.begin(answer.miner);
    answer.run_id = state.run_id;
    answer.run_spec = encode(state.spec);
    answer.data_plan = encode(state.data);
    answer.lease_key = surroundings_.key;
    heard_.heard(answer.miner, monotonic());
    told_to_leave_[answer.miner] = false;
  } else {
    spdlog::warn("registration of {} from {} refused: {}", call.caller.node.brief(), call.caller.address, answer.message);
  }
  answers_.emplace_back([done = std::move(call.done), answer = std::move(answer)]() mutable { done(std::move(answer)); });
  return ok_status();
}

Status OrchestratorControl::handle_sync(SyncCall& call) {
  const core::MinerRecord* miner = core_.find(call.caller.node, call.request.incarnation);
  const auto session = miner == nullptr ? sessions_.end() : sessions_.find(miner->index);
  if (miner == nullptr || session == sessions_.end() || session->second != call.caller.session) {
    core::SyncAnswer answer;
    answer.known = false;
    answer.reason = "register again";
    answers_.emplace_back([done = std::move(call.done), answer = std::move(answer)]() mutable { done(std::move(answer)); });
    return ok_status();
  }
  const MinerIndex index = miner->index;
  call.request.miner = index;
  heard_.heard(index, monotonic());
  statuses_[index] = call.request.status;
  const std::string& run_id = core_.state().run_id;
  const auto forged = [&](const core::Receipt& receipt) {
    return receipt.miner != index || receipt.incarnation != call.request.incarnation || receipt.stage != miner->stage ||
           !surroundings_.verify(call.caller.node, receipt.signed_bytes(run_id), receipt.signature);
  };
  for (const core::Receipt& receipt : call.request.receipts) {
    if (receipt.sequence <= miner->receipts_through || !forged(receipt)) continue;
    // It counts for nothing and stops nothing: neither the rest of the report nor the receipts after it.
    spdlog::warn("miner {}: receipt {} is not signed by it or not about it; it is left out", index, receipt.sequence);
    call.request.bad_receipts.push_back(receipt.sequence);
  }
  // Evidence must hold before third parties: what is not signed by the miner itself is no commitment.
  std::optional<core::UploadCommit>& upload = call.request.upload;
  if (upload && !surroundings_.verify(call.caller.node, upload->signed_bytes(run_id, miner->stage), upload->signature)) upload.reset();
  call.request.shards = core_.owed_commits(call.request);
  std::erase_if(call.request.shards, [&](const core::ShardCommit& commit) {
    return !surroundings_.verify(call.caller.node, commit.signed_bytes(run_id, miner->stage), commit.signature);
  });
  const uint64_t receipts_before = miner->receipts_through;
  for (core::Event& event : core_.news_in(call.request)) {
    if (const auto* published = std::get_if<core::StatePublished>(&event)) {
      check_published(*published);
      continue;
    }
    if (const auto* arrived = std::get_if<core::ReceiptsArrived>(&event)) note_loss(*arrived);
    TESSERA_RETURN_IF_ERROR(apply(std::move(event)));
  }
  if (std::optional<core::Event> leases = core_.lease_request_in(call.request)) {
    TESSERA_RETURN_IF_ERROR(apply(std::move(*leases)));
  }
  core::SyncAnswer answer = core_.answer_for(call.request);
  for (core::Lease& lease : answer.leases) lease.signature = surroundings_.sign(lease.signed_bytes(run_id));
  const core::MinerRecord& record = core_.state().miners[index];
  const uint64_t asked = blob_asks_.news_in(core_.state(), record, answer, record.receipts_through - receipts_before);
  if (asked > 0) surroundings_.blobs_asked(call.caller.node, asked);
  if (answer.leave && !told_to_leave_[index]) {
    told_to_leave_[index] = true;
    TESSERA_RETURN_IF_ERROR(apply(core::MinerReported{index, call.request.status}));
  }
  answers_.emplace_back([done = std::move(call.done), answer = std::move(answer)]() mutable { done(std::move(answer)); });
  return ok_status();
}

// A miner's word that the stage's state lies in the blob store lets the merges before it be forgotten: it is believed when
// all of it was read. One look a stage is under way: were there one for every claim, those of states that are old by now would
// keep the newest waiting. What is said again in every report is looked at now and then.
void OrchestratorControl::check_published(const core::StatePublished& claim) {
  const StageIndex s = core_.state().miners[claim.miner].stage;
  if (published_looks_.contains(s)) return;
  const auto [last, is_first] = published_checked_.try_emplace(claim.miner, 0);
  if (!is_first && monotonic() - last->second < kPublishedCheckMs) return;
  last->second = monotonic();
  if (surroundings_.start(PublishedJob{claim, core_.state().stages[s].values})) published_looks_[s] = claim.miner;
}

Status OrchestratorControl::handle_published(const PublishedCall& call) {
  std::erase_if(published_looks_, [&](const auto& look) { return look.second == call.claim.miner; });
  const core::MinerRecord* miner = core_.state().miners.find(call.claim.miner);
  const bool is_old = miner == nullptr || !miner->placed || core_.state().stages[miner->stage].state != call.claim.state;
  if (call.status.ok() || is_old) published_checked_.erase(call.claim.miner);
  if (is_old) return ok_status();
  if (call.status.ok()) return apply(call.claim);
  spdlog::warn("miner {} says that the state of epoch {} is in the blob store, but it can't be read: {}", call.claim.miner,
               call.claim.epoch, message_of(call.status));
  return ok_status();
}

void OrchestratorControl::note_loss(const core::ReceiptsArrived& arrived) {
  for (const core::Receipt& receipt : arrived.receipts) {
    if (receipt.stage + 1 != core_.state().stages.size() || !std::isfinite(receipt.loss)) continue;
    loss_ = loss_ == 0 ? receipt.loss : loss_ + kLossWeight * (receipt.loss - loss_);
  }
}

Status OrchestratorControl::handle(Call call) {
  if (auto* registration = std::get_if<RegisterCall>(&call)) return handle_register(*registration);
  if (auto* sync = std::get_if<SyncCall>(&call)) return handle_sync(*sync);
  if (auto* report = std::get_if<ValidateCall>(&call)) return handle_validate(*report);
  if (auto* command = std::get_if<CommandCall>(&call)) return handle_command(*command);
  if (auto* event = std::get_if<core::Event>(&call)) return apply(std::move(*event));
  if (auto* created = std::get_if<CreatedCall>(&call)) return handle_created(*created);
  if (auto* published = std::get_if<PublishedCall>(&call)) return handle_published(*published);
  auto& query = std::get<QueryCall>(call);
  StatusOr<std::string> answer = view({core_, statuses_, heard_, monotonic(), loss_}, query.topic, query.argument);
  answers_.emplace_back([done = std::move(query.done), answer = std::move(answer)]() mutable { done(std::move(answer)); });
  return ok_status();
}

}  // namespace tessera::node
