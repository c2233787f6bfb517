// The state as bytes: digest of the state's shape (32 bytes), time of the last step (i64), encode(OrchestratorState).
#include "tessera/base/archive_schema.h"
#include "tessera/base/crypto.h"
#include "tessera/core/orchestrator.h"

namespace tessera::core {
namespace {

struct Snapshot {
  Digest shape;
  TimeMs time = 0;
  OrchestratorState state;
  template <class A>
  void fields(A& a) {
    a("shape", shape)("time", time)("state", state);
  }
};

Digest shape_of_state() {
  static const Digest shape = digest_of(schema_of<OrchestratorState>());
  return shape;
}

}  // namespace

std::string Orchestrator::snapshot() const {
  Encoder encoder;
  encoder.write(shape_of_state());
  encoder.write(now_);
  encoder.write(state_);
  return encoder.take();
}

bool Orchestrator::load(std::string_view bytes) {
  if (bytes.substr(0, 32) != shape_of_state().view()) return false;
  Snapshot snapshot;
  if (!decode(bytes, &snapshot) || !snapshot.state.created) return false;
  state_ = std::move(snapshot.state);
  now_ = snapshot.time;
  effects_ = {};
  index_.rebuild(state_);
  return true;
}

}  // namespace tessera::core
