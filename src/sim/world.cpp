#include "world.h"

#include <cstring>

#include "tessera/core/frame.h"
#include "tessera/core/stage_layout.h"

namespace tessera::sim {
namespace {

constexpr uint64_t kWholeTensorBytes = 4096;  // above it frames travel without tensor and tokens

uint64_t forward_frame_bytes(const core::RunSpec& spec) {
  const uint64_t tokens = uint64_t{spec.training.microbatch_size} * (spec.model.context + 1);
  return core::kFrameHeaderBytes + 4 * spec.pipeline.stages + core::kLeaseProofBytes +
         tokens * core::token_id_bytes(spec.model.vocab) +
         payload_bytes(spec.boundary.codec, spec.tokens_per_microbatch(),
                       static_cast<size_t>(core::boundary_width(spec)));
}

struct BytesOf {
  const config::Scenario& scenario;

  uint64_t operator()(const core::Frame&) const {
    return scenario.sim.frame_bytes > 0 ? scenario.sim.frame_bytes
                                        : forward_frame_bytes(scenario.run.spec);
  }
  uint64_t operator()(const core::Admission&) const { return 200; }
  uint64_t operator()(const ProbeRequest&) const { return 100; }
  uint64_t operator()(const StatusOr<core::PeerHealth>&) const { return 150; }
  uint64_t operator()(const ConnectionBroken&) const { return 60; }
  uint64_t operator()(const core::Registration&) const { return 500; }
  uint64_t operator()(const StatusOr<core::RegisterAnswer>&) const { return 2000; }
  uint64_t operator()(const core::SyncRequest& request) const {
    return 400 + 400 * request.receipts.size() + 50 * request.shards.size();
  }
  uint64_t operator()(const StatusOr<core::SyncAnswer>& answer) const {
    if (!answer.ok()) return 200;
    uint64_t bytes = 300 + 180 * answer->leases.size();
    if (answer->peers) bytes += 80 * answer->peers->size();
    if (answer->merge)
      bytes += 40 * (answer->merge->uploads.size() + answer->merge->results.size());
    return bytes;
  }
};

}  // namespace

NodeId key_of_node(uint32_t node) {
  NodeId key;
  std::memcpy(key.bytes.data(), &node, sizeof(node));
  key.bytes[31] = 1;
  return key;
}

uint32_t node_of_key(const NodeId& key) {
  uint32_t node = 0;
  std::memcpy(&node, key.bytes.data(), sizeof(node));
  return node;
}

Signature sign_as(const NodeId& key, std::string_view bytes) {
  Hasher hasher;
  hasher.update(key.view());
  hasher.update(bytes);
  const Digest digest = hasher.finish();
  Signature signature{};
  std::memcpy(signature.data(), digest.bytes.data(), digest.bytes.size());
  return signature;
}

bool is_signed_by(const NodeId& key, std::string_view bytes, const Signature& signature) {
  return sign_as(key, bytes) == signature;
}

World::World(const config::Scenario& wanted)
    : scenario(wanted),
      whole_tensors(forward_frame_bytes(wanted.run.spec) <= kWholeTensorBytes),
      random(mix64(wanted.sim.seed)),
      network(scenario.sim, &random),
      trace(queue),
      measures(scenario, queue) {}

bool World::fails(double share) { return share > 0 && !faults_over && random.uniform() < share; }

void World::send(Message message) {
  message.bytes = std::visit(BytesOf{scenario}, message.body);
  TimeUs arrival = 0;
  if (std::holds_alternative<core::Frame>(message.body)) {
    const auto through = network.frame_arrival(queue.now_us(), message.from, message.bytes, message.until_us);
    if (!through) return;
    arrival = *through;
  } else {
    arrival = network.arrival(queue.now_us(), message.from, message.bytes);
  }
  if (fails(sim.loss)) return;
  if (fails(sim.reordering))
    arrival += static_cast<TimeUs>(random.uniform() * sim.reordering_ms * 1000);
  const bool repeatable = std::holds_alternative<core::Frame>(message.body) ||
                          std::holds_alternative<core::SyncRequest>(message.body);
  if (repeatable && fails(sim.duplication)) {
    const TimeUs again = arrival + static_cast<TimeUs>(random.uniform() * sim.reordering_ms * 1000);
    queue.push(again, EventKind::kArrive, message.to, 0, messages.put(message));
  }
  const uint32_t to = message.to;
  queue.push(arrival, EventKind::kArrive, to, 0, messages.put(std::move(message)));
}

void World::answer_locally(Message message, TimeUs delay) {
  const uint32_t to = message.to;
  message.from = to;  // no partition lies between
  queue.push(queue.now_us() + delay, EventKind::kDeliver, to, 0, messages.put(std::move(message)));
}

void World::require(bool condition, const char* what) {
  if (!condition && broken.empty()) {
    broken =
        fmt::format("at {:.3f} s: {}", static_cast<double>(queue.now_us() - kBeginUs) / 1e6, what);
  }
}

std::string World::random_bytes(size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.below(256));
  return bytes;
}

}  // namespace tessera::sim
