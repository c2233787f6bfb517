// How the peers are: who is left out and why, when one that is silent is asked, and what becomes of
// what it holds.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/core/miner.h"

namespace tessera::core {
namespace {

constexpr TimeMs kProbeAfterMs = 250;  // least silence of a peer that holds work before it is asked
constexpr TimeMs kProbeFloorMs = 500;  // least time it has to answer
constexpr TimeMs kHealthMs = 1000;     // how old the health of a peer in use may get
constexpr TimeMs kFirstPauseMs =
    200;  // between probes of one that is left out; doubles up to the longest
constexpr TimeMs kLongestPauseMs = 5000;
constexpr size_t kMaxProbes = 64;  // under way

}  // namespace

void Miner::take_peers(std::vector<Peer> table) {
  std::map<MinerIndex, PeerState> before = std::move(peers_);
  peers_.clear();
  peer_of_node_.clear();
  std::vector<std::pair<MinerIndex, std::string>> gone;
  for (Peer& peer : table) {
    PeerState state;
    if (const auto old = before.find(peer.miner); old != before.end()) {
      const Peer& then = old->second.peer;
      const bool same = then.incarnation == peer.incarnation && then.address == peer.address;
      // A new process or address, or a fresh word from the orchestrator that it lives, ends a
      // suspension.
      const bool fresh = !same || (!then.live && peer.live);
      if (same) {
        state = std::move(old->second);
        state.newest_epoch = fresh ? 0 : state.newest_epoch;
      } else {
        state.outstanding = old->second.outstanding;
        gone.emplace_back(peer.miner, "another process is at its place");
      }
      if (fresh) {
        state.suspended.clear();
        suspended_.erase(peer.miner);
      }
      // The orchestrator has lost it. If it is only the orchestrator that does not hear it, its
      // work goes on.
      if (same && then.live && !peer.live && state.outstanding > 0 &&
          now_ - state.heard_at > spec_.timeouts.peer_ms) {
        gone.emplace_back(peer.miner, "the orchestrator has lost it");
      }
      before.erase(old);
    }
    state.peer = std::move(peer);
    peer_of_node_[state.peer.node] = state.peer.miner;
    peers_.emplace(state.peer.miner, std::move(state));
  }
  for (const auto& [index, state] : before) {
    suspended_.erase(index);
    gone.emplace_back(index, "it left the run");
  }
  for (const auto& [index, why] : gone) give_away_held_by(index, why);
}

void Miner::heard(PeerState& peer) {
  peer.heard_at = now_;
  if (peer.suspended.empty()) return;
  // It was there all the time, or came back: next time it gets longer before it is left out.
  peer.patience = std::min<TimeMs>(2 * probe_deadline(peer), spec_.timeouts.peer_ms);
  peer.suspended.clear();
  suspended_.erase(peer.peer.miner);
  say(fmt::format("miner {} answers again", peer.peer.miner));
}

void Miner::suspend(PeerState& peer, const std::string& why) {
  if (peer.suspended.empty()) {
    peer.suspended = why;
    peer.probe_pause = kFirstPauseMs;
    suspended_.insert(peer.peer.miner);
    say(fmt::format("miner {} is left out: {}", peer.peer.miner, why), true);
  } else {
    peer.probe_pause = std::min(2 * peer.probe_pause, kLongestPauseMs);
  }
  peer.probe_at = now_ + peer.probe_pause;
  give_away_held_by(peer.peer.miner, why);
}

void Miner::give_away_held_by(MinerIndex miner, const std::string& why) {
  std::vector<MicrobatchKey> held;
  for (const auto& [key, work] : works_) {
    const bool there = work.state == WorkState::kAwaitingGradient ||
                       (work.state == WorkState::kSending && work.outstanding);
    if (there && work.downstream == miner) held.push_back(key);
  }
  if (held.empty()) return;
  say(fmt::format("miner {} holds {} microbatches, which others get now: {}", miner, held.size(),
                  why),
      true);
  for (const MicrobatchKey& key : held) give_again(key, works_.at(key));
}

TimeMs Miner::probe_deadline(const PeerState& peer) const {
  return peer.probes.deadline(std::max(kProbeFloorMs, peer.patience), spec_.timeouts.peer_ms);
}

void Miner::probe(PeerState& peer) {
  if (peer.probe != 0 || probes_.size() >= kMaxProbes) return;
  peer.probe = next_probe_++;
  peer.probe_sent_at = now_;
  probes_[peer.probe] = peer.peer.miner;
  emit(miner_effect::Probe{peer.probe, peer.peer, static_cast<uint32_t>(probe_deadline(peer))});
}

void Miner::ask_health(PeerState& peer) {
  if (peer.health_at == 0 || now_ - peer.health_at >= kHealthMs) probe(peer);
}

// Asks those that hold work of this miner and were silent for a while, and those that are left out.
void Miner::watch_peers() {
  std::map<MinerIndex, TimeMs> holders;  // since when, the longest
  for (const auto& [key, work] : works_) {
    if (!work.outstanding) continue;
    TimeMs& since = holders.try_emplace(work.downstream, work.sent_at).first->second;
    since = std::min(since, work.sent_at);
  }
  for (const auto& [index, since] : holders) {
    const auto peer = peers_.find(index);
    if (peer == peers_.end() || !peer->second.suspended.empty()) continue;
    PeerState& state = peer->second;
    // Slow pipelines need fewer questions to notice a death within a fraction of what it costs.
    const TimeMs most = spec_.timeouts.peer_ms;
    const TimeMs held_for = std::max(state.gradients.median(), now_ - since);
    const TimeMs silence = std::clamp(held_for / 4, std::min(kProbeAfterMs, most), most);
    if (now_ - std::max(state.heard_at, state.probe_sent_at) >= silence) probe(state);
  }
  for (const MinerIndex index : suspended_) {
    PeerState& state = peers_.at(index);
    if (now_ >= state.probe_at && state.peer.live) probe(state);
  }
}

void Miner::on(miner_event::ProbeAnswered& event) {
  const auto asked = probes_.find(event.probe);
  if (asked == probes_.end()) return;
  const auto found = peers_.find(asked->second);
  probes_.erase(asked);
  if (found == peers_.end() || found->second.probe != event.probe) return;
  PeerState& peer = found->second;
  peer.probe = 0;
  if (!event.ok) {
    // Something else of it may have come since.
    if (!peer.suspended.empty() || peer.heard_at <= peer.probe_sent_at)
      suspend(peer, "it does not answer when asked");
    return;
  }
  heard(peer);
  peer.probes.add(now_ - peer.probe_sent_at);
  peer.patience -= peer.patience / 16;
  peer.health = event.health;
  if (!(peer.health.microbatch_ms >= 0 && peer.health.microbatch_ms < 1e9f))
    peer.health.microbatch_ms = 0;
  peer.health_at = now_;
  peer.given_since = 0;
}

void Miner::on(miner_event::PeerBroken& event) {
  const auto known = peer_of_node_.find(event.node);
  if (known == peer_of_node_.end()) return;
  suspend(peers_.at(known->second), "the connection to it broke");
}

}  // namespace tessera::core
