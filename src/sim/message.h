// What travels through the simulated network. Messages lie in slots; events name the slot.
#pragma once

#include <cstdint>
#include <deque>
#include <variant>
#include <vector>

#include "tessera/base/status.h"
#include "tessera/core/messages.h"

namespace tessera::sim {

inline constexpr uint32_t kOrchestratorNode = 0;  // the miners' nodes are 1, 2, ...

struct ProbeRequest {};      // how are you? -> StatusOr<core::PeerHealth>
struct ConnectionBroken {};  // the sender's process, to which the receiver was connected, is gone

struct Message {
  uint32_t from = 0;
  uint32_t to = 0;
  uint32_t from_generation = 0;
  uint32_t to_generation = 0;  // of an answer: who asked; other messages are for whoever is there
  uint64_t id = 0;             // of the call, for its answer
  std::string session{};       // of a report
  uint64_t bytes = 0;
  int64_t until_us = INT64_MAX;  // when the sender gives it up; frames only
  std::variant<core::Frame, core::Admission, core::Registration, StatusOr<core::RegisterAnswer>,
               core::SyncRequest, StatusOr<core::SyncAnswer>, ProbeRequest,
               StatusOr<core::PeerHealth>, ConnectionBroken>
      body;

  // For the process that asked, and no other.
  bool is_answer() const {
    return std::holds_alternative<core::Admission>(body) ||
           std::holds_alternative<StatusOr<core::RegisterAnswer>>(body) ||
           std::holds_alternative<StatusOr<core::SyncAnswer>>(body) ||
           std::holds_alternative<StatusOr<core::PeerHealth>>(body) ||
           std::holds_alternative<ConnectionBroken>(body);
  }
};

class MessagePool {
 public:
  static constexpr size_t kLimit = 20000000;

  uint64_t put(Message message) {
    if (free_.empty()) {
      TESSERA_CHECK(slots_.size() < kLimit);
      slots_.push_back(std::move(message));
      return slots_.size() - 1;
    }
    const uint64_t slot = free_.back();
    free_.pop_back();
    slots_[slot] = std::move(message);
    return slot;
  }
  Message& at(uint64_t slot) { return slots_[slot]; }
  Message take(uint64_t slot) {
    Message message = std::move(slots_[slot]);
    slots_[slot].body = core::Admission::kAccepted;  // frees what the moved-from one still holds
    free_.push_back(slot);
    return message;
  }

 private:
  std::deque<Message> slots_;
  std::vector<uint64_t> free_;
};

}  // namespace tessera::sim
