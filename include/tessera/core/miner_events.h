// What a miner's state machine (core/miner.h) hears of, and what it asks its shell to do.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tessera/core/messages.h"
#include "tessera/core/stage_state.h"

namespace tessera::core {

// ---- events ---------------------------------------------------------------------------------------------------------

namespace miner_event {
struct AnswerArrived {
  SyncAnswer answer;
};
struct FrameArrived {
  Frame frame;
  Digest payload_hash;
  NodeId sender;
  uint64_t reply = 0;  // to name in ReplyAdmission
};
struct FrameAnswered {
  uint64_t send = 0;
  Admission admission = Admission::kAccepted;
};
struct ProbeAnswered {
  uint64_t probe = 0;
  bool ok = false;  // false: no answer in time, or no connection
  PeerHealth health;
};
struct PeerBroken {  // the connection to it broke
  NodeId node;
};
struct TokensRead {
  MicrobatchKey key;
  std::vector<uint32_t> tokens;  // B * (T + 1)
  bool ok = true;
  std::string why;
};
struct ForwardDone {
  MicrobatchKey key;
  BoundaryPayload output;
  Digest output_hash;
  double loss = 0;
  uint64_t weight_version = 0;
  float milliseconds = 0;
};
// The first part of a backward: what upstream waits for, while the weight gradients are still computed. May not come; then
// BackwardDone has it.
struct InputGradientReady {
  MicrobatchKey key;
  BoundaryPayload input_gradient;
  Digest gradient_hash;
};
struct BackwardDone {
  MicrobatchKey key;
  BoundaryPayload input_gradient;  // empty if InputGradientReady brought it
  Digest gradient_hash;
  float milliseconds = 0;
};
struct ComputeFailed {  // of a forward or backward
  MicrobatchKey key;
  std::string why;
};
struct StepDone {
  bool ok = true;  // false: the gradient was not finite and was dropped
  double gradient_norm = 0;
  uint64_t weight_version = 0;
  std::string why;
};
struct StateFetched {  // base and momentum are with the background worker now
  bool ok = true;
  std::string why;
  Values masters;                               // null: keep the engine's initial ones
  std::shared_ptr<const LocalState> local_state;  // when resuming
  Digest state;
  Recovered recovered;
};
struct StateInstalled {
  bool ok = true;
  std::string why;
  uint64_t weight_version = 0;
  uint32_t accumulated = 0;
  Values initial_masters;  // when the stage was initialised from the seed: the base of epoch 0
};
struct BaseAdopted {  // the background worker took the initial masters as base
  Digest state;
};
struct SnapshotTaken {
  Epoch target = 0;
  Values masters;
  uint64_t weight_version = 0;
  SharedMoments moments;  // if they were wanted
};
struct DeltaUploaded {  // twice if its blocks take longer than their names: the second time it is whole
  UploadCommit commit;
  bool ok = true;
  std::string why;
};
struct ShardReduced {
  ShardCommit commit;
  bool ok = true;
  std::string why;
};
struct BasePrepared {  // the outer step is computed
  Epoch target = 0;
  bool ok = true;
  std::string why;
  std::vector<uint64_t> unreadable;  // first blocks of shards that can't be had, at most kMaxUnreadableResults
  Values base;
  Values reference;  // what local progress is measured from: the snapshot, or the old base; null: it is dropped
  Digest state;
  SharedMoments moments;  // the participants' mean, if merges have one
};
struct BaseApplied {
  Epoch target = 0;
  uint64_t weight_version = 0;
};
struct StatePutOut {
  Epoch epoch = 0;
  Digest state;
  bool ok = true;
  std::string why;
};
struct LocalStateExported {
  uint64_t id = 0;
  std::shared_ptr<const LocalState> state;
};
struct LocalStateUploaded {
  uint64_t id = 0;
  Digest object;
  bool ok = true;
  std::string why;
};
struct LocalStateSaved {  // in this miner's folder
  uint64_t steps = 0;
  bool ok = true;
  std::string why;
};
struct SegmentExported {
  uint64_t number = 0;
  std::shared_ptr<const LocalState> state;  // null: the engine does not give all that a replay needs
  std::vector<WeightVersion> older;         // of microbatches in flight
  double milliseconds = 0;                  // of computing
};
struct SegmentStored {  // or not: then its state is zero
  SegmentCommit commit;
};
struct DrainRequested {};
struct Ticked {};
}  // namespace miner_event

using MinerEvent =
    std::variant<miner_event::AnswerArrived, miner_event::FrameArrived, miner_event::FrameAnswered,
                 miner_event::ProbeAnswered, miner_event::PeerBroken, miner_event::InputGradientReady,
                 miner_event::TokensRead, miner_event::ForwardDone, miner_event::BackwardDone,
                 miner_event::ComputeFailed, miner_event::StepDone, miner_event::StateFetched,
                 miner_event::StateInstalled, miner_event::BaseAdopted, miner_event::SnapshotTaken,
                 miner_event::DeltaUploaded, miner_event::ShardReduced, miner_event::BasePrepared,
                 miner_event::BaseApplied, miner_event::StatePutOut, miner_event::LocalStateExported,
                 miner_event::LocalStateUploaded, miner_event::LocalStateSaved,
                 miner_event::SegmentExported, miner_event::SegmentStored,
                 miner_event::DrainRequested, miner_event::Ticked>;

// ---- effects --------------------------------------------------------------------------------------------------------

namespace miner_effect {
struct ReplyAdmission {
  uint64_t reply = 0;
  Admission admission = Admission::kAccepted;
};
struct SendFrame {
  uint64_t send = 0;
  Peer peer;
  Frame frame;
  uint32_t timeout_ms = 0;
};
struct Probe {
  uint64_t probe = 0;
  Peer peer;
  uint32_t timeout_ms = 0;
};
struct ReadTokens {
  MicrobatchKey key;
};
// For the compute thread, in order, one answer each (Discard has none).
struct Forward {
  MicrobatchKey key;
  std::shared_ptr<const std::vector<uint32_t>> tokens;
  BoundaryPayload input;
};
struct Backward {
  MicrobatchKey key;
  BoundaryPayload output_gradient;
  bool accumulate = true;
};
struct Discard {
  MicrobatchKey key;
};
struct OptimizerStep {
  double learning_rate = 0;
};
struct InstallState {
  Values masters;
  std::shared_ptr<const LocalState> local_state;
};
struct TakeSnapshot {
  Epoch target = 0;
  bool with_moments = false;
};
struct ApplyBase {
  Epoch target = 0;
  Values base;
  Values reference;
  bool reset_moments = false;
  SharedMoments moments;      // to take in place of the own; null: those stay
  uint64_t moments_age = 0;   // local steps that `moments` have behind them at least
};
struct ExportLocalState {
  uint64_t id = 0;  // of the run's checkpoint; 0: for this miner's own
};
struct ExportSegment {
  uint64_t number = 0;
};
// For the background worker, in order, one answer each.
struct FetchState {
  Assignment assignment;
  bool recover = true;  // look for what the process before has saved
};
struct AdoptBase {
  Values masters;
};
struct UploadDelta {
  Epoch target = 0;
  Values snapshot;
  uint64_t snapshot_step = 0;
  uint64_t snapshot_version = 0;
  uint64_t again = 0;   // the directive's
  uint32_t rounds = 1;  // in so many parts, one after the other
  SharedMoments moments;  // at the snapshot, if the merge averages them
};
// Of others, to be fetched while there is nothing else to do.
struct FetchSealed {
  Epoch target = 0;
  std::vector<SealedResult> results;
};
struct ReduceShards {
  Epoch target = 0;
  std::vector<ShardTask> tasks;  // each is answered by itself
  std::vector<UploadRef> uploads;
  uint32_t rounds = 1;           // of the uploads
  bool uploads_whole = false;    // else blocks that are not there yet are waited for
};
struct PrepareBase {
  Epoch target = 0;
  std::vector<UploadRef> uploads;
  std::vector<ShardResult> results;
  bool participant = false;
  double outer_learning_rate = 0;
  double outer_momentum = 0;
  bool drop_carry = false;
};
struct PutOutState {
  Epoch epoch = 0;
};
struct UploadLocalState {
  uint64_t id = 0;
  std::shared_ptr<const LocalState> state;
};
struct SaveLocalState {
  LocalCheckpoint about;
  std::shared_ptr<const LocalState> state;
};
// Takes its time and stands behind the payloads of what came before it: in a queue of its own, if there is one.
struct StoreSegment {
  SegmentCommit commit;  // without names
  std::shared_ptr<const LocalState> state;
  std::vector<WeightVersion> older;
};
struct Leave {
  std::string reason;
  bool rejoin = false;  // as a new incarnation, which gets another stage or another layout of it
};
struct Say {
  std::string text;
  bool warning = false;
};
}  // namespace miner_effect

using ComputeJob = std::variant<miner_effect::Forward, miner_effect::Backward, miner_effect::Discard,
                                miner_effect::OptimizerStep, miner_effect::InstallState,
                                miner_effect::TakeSnapshot, miner_effect::ApplyBase,
                                miner_effect::ExportLocalState, miner_effect::ExportSegment>;
using BackgroundJob = std::variant<miner_effect::FetchState, miner_effect::AdoptBase, miner_effect::UploadDelta,
                                   miner_effect::ReduceShards, miner_effect::FetchSealed, miner_effect::PrepareBase,
                                   miner_effect::PutOutState, miner_effect::UploadLocalState,
                                   miner_effect::SaveLocalState, miner_effect::StoreSegment>;
using MinerEffect = std::variant<miner_effect::ReplyAdmission, miner_effect::SendFrame, miner_effect::Probe,
                                 miner_effect::ReadTokens, ComputeJob, BackgroundJob, miner_effect::Leave, miner_effect::Say>;

}  // namespace tessera::core
