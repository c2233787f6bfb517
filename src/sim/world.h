// What the simulated nodes share: clock, network, random numbers, blobs, trace and measures. One
// thread.
#pragma once

#include <functional>
#include <set>
#include <string>

#include "event_queue.h"
#include "measures.h"
#include "memory_ports.h"
#include "message.h"
#include "network.h"
#include "tessera/base/prng.h"
#include "tessera/config/scenario.h"
#include "trace.h"

namespace tessera::sim {

inline constexpr TimeMs kUnixEpochMs = 1700000000000;  // unix time when simulated time is 0

// A node's public key is its number; its signature a keyed hash of the bytes: as good as a real one
// against bugs, and cheap.
NodeId key_of_node(uint32_t node);
uint32_t node_of_key(const NodeId& key);
Signature sign_as(const NodeId& key, std::string_view bytes);
bool is_signed_by(const NodeId& key, std::string_view bytes, const Signature& signature);

class World {
 public:
  explicit World(const config::Scenario& wanted);

  // True with this probability, while anything fails at random at all.
  bool fails(double share);
  // Sends it on its way: later it arrives once, twice or never.
  void send(Message message);
  // An answer that no network is needed for: the sender's own system makes it, after `delay`.
  void answer_locally(Message message, TimeUs delay);
  void require(bool condition, const char* what);
  std::string random_bytes(size_t size);

  const config::Scenario scenario;
  const core::RunSpec& spec = scenario.run.spec;
  const config::SimSpec& sim = scenario.sim;
  const bool whole_tensors;  // frames carry what real ones do; too much to copy for large ones
  EventQueue queue;
  Prng random;
  Network network;
  MessagePool messages;
  MemoryBlobs blobs;
  Trace trace;
  Measures measures;
  bool faults_over = false;        // nothing random fails any more
  TimeUs faults_over_us = kNever;  // since when
  // Whether both owners of the shard are cheaters of the same kind that works in pairs: they tell each other what they were told.
  std::function<bool(StageIndex stage, uint32_t shard)> owned_by_pair = [](StageIndex, uint32_t) { return false; };
  std::set<uint32_t> liars;        // nodes that lied of a shard (sim.lies)
  std::string broken;              // the first thing that must never happen and did
};

}  // namespace tessera::sim
