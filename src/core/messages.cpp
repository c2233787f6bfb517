#include "tessera/core/messages.h"

namespace tessera::core {

const char* name_of(MinerPhase phase) {
  switch (phase) {
    case MinerPhase::kJoining: return "joining";
    case MinerPhase::kLoading: return "loading";
    case MinerPhase::kReady: return "ready";
    case MinerPhase::kDraining: return "draining";
  }
  return "unknown";
}

const char* name_of(RunPhase phase) {
  switch (phase) {
    case RunPhase::kWaiting: return "waiting";
    case RunPhase::kRunning: return "running";
    case RunPhase::kPaused: return "paused";
    case RunPhase::kDraining: return "draining";
    case RunPhase::kMerging: return "merging";
    case RunPhase::kCheckpointing: return "checkpointing";
    case RunPhase::kStopped: return "stopped";
    case RunPhase::kFinished: return "finished";
    case RunPhase::kRestaging: return "restaging";
  }
  return "unknown";
}

const char* name_of(Admission admission) {
  switch (admission) {
    case Admission::kAccepted: return "accepted";
    case Admission::kFull: return "full";
    case Admission::kWrongRun: return "wrong run";
    case Admission::kWrongStage: return "wrong stage";
    case Admission::kWrongShape: return "wrong shape";
    case Admission::kStaleAttempt: return "stale attempt";
    case Admission::kStaleEpoch: return "stale epoch";
    case Admission::kDuplicate: return "duplicate";
    case Admission::kNotReady: return "not ready";
    case Admission::kUnknownMicrobatch: return "unknown microbatch";
    case Admission::kCorrupt: return "corrupt";
    case Admission::kUnauthenticated: return "unauthenticated";
    case Admission::kTakenOver: return "taken over";
    case Admission::kNotLeased: return "not leased";
    case Admission::kUnreachable: return "unreachable";
  }
  return "unknown";
}

}  // namespace tessera::core
