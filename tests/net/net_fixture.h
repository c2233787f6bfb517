// What the net tests share: keys, bounded waits, handlers that tests steer, a value with every
// field set.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "tessera/base/archive.h"
#include "tessera/base/crypto.h"
#include "tessera/core/messages.h"
#include "tessera/net/links.h"
#include "tessera/net/server.h"

namespace tessera::net {

inline constexpr std::chrono::seconds kBound(20);    // only a failing test waits so long
inline const std::string kRun = "run id of tests.";  // 16 bytes
inline const std::string kLoopback = "127.0.0.1:0";

inline KeyPair key_of(char letter) { return KeyPair::from_seed(std::string(32, letter)); }

// A callback's argument, with a bounded wait for it. Copies share it.
template <class T>
class Answer {
 public:
  std::function<void(T)> callback() {
    return [promise = promise_](T value) { promise->set_value(std::move(value)); };
  }
  T get() {
    if (future_.wait_for(kBound) != std::future_status::ready) {
      ADD_FAILURE() << "no answer";
      std::abort();  // what the callback refers to may be gone when it comes
    }
    return future_.get();
  }

 private:
  std::shared_ptr<std::promise<T>> promise_ = std::make_shared<std::promise<T>>();
  std::shared_future<T> future_ = promise_->get_future().share();
};

class SteeredOrchestrator : public ports::OrchestratorHandler {
 public:
  using RegisterDone = std::function<void(StatusOr<core::RegisterAnswer>)>;
  using SyncDone = std::function<void(StatusOr<core::SyncAnswer>)>;
  using JsonDone = std::function<void(StatusOr<std::string>)>;

  std::function<void(const ports::Caller&, core::Registration, RegisterDone)> registered;
  std::function<void(const ports::Caller&, core::SyncRequest, SyncDone)> synced;
  std::function<void(const ports::Caller&, std::string, std::string, JsonDone)> asked =
      [](const ports::Caller& caller, std::string topic, std::string argument, JsonDone done) {
        done("query " + topic + " " + argument + " " + caller.node.brief());
      };

  void on_register(const ports::Caller& caller, core::Registration registration,
                   RegisterDone done) override {
    registered(caller, std::move(registration), std::move(done));
  }
  void on_sync(const ports::Caller& caller, core::SyncRequest request, SyncDone done) override {
    synced(caller, std::move(request), std::move(done));
  }
  void on_query(const ports::Caller& caller, std::string topic, std::string argument,
                JsonDone done) override {
    asked(caller, std::move(topic), std::move(argument), std::move(done));
  }
  void on_command(const ports::Caller& caller, std::string command, std::string argument,
                  JsonDone done) override {
    done(failed_precondition("command {} {} refused", command, argument));
  }
};

class SteeredPeer : public ports::PeerHandler {
 public:
  using Done = std::function<void(core::Admission)>;
  std::function<void(const ports::Caller&, std::string, Done)> arrived =
      [](const ports::Caller&, std::string, Done done) { done(core::Admission::kAccepted); };
  void on_frame(const ports::Caller& caller, std::string frame, Done done) override {
    arrived(caller, std::move(frame), std::move(done));
  }
  std::function<StatusOr<std::string>(const Digest&)> gives = [](const Digest&) { return not_found("nothing"); };
  StatusOr<std::string> donate(const Digest& name) override { return gives(name); }
  core::PeerHealth health{3, 5, 7.5f};
  void on_probe(const ports::Caller&,
                std::function<void(StatusOr<core::PeerHealth>)> done) override {
    done(health);
  }
};

// Gives every field another value, none of them the default: a field that a conversion forgets is
// found.
class Filler {
 public:
  template <class T>
  Filler& operator()(const char*, T& value) {
    fill(value);
    return *this;
  }
  template <class T>
  void fill(T& value) {
    ++count_;
    if constexpr (std::is_same_v<T, bool>) {
      value = true;
    } else if constexpr (std::is_enum_v<T>) {
      value = static_cast<T>(2);
    } else if constexpr (std::is_floating_point_v<T>) {
      value = static_cast<T>(count_) + T(0.25);
    } else if constexpr (std::is_arithmetic_v<T>) {
      value = static_cast<T>(count_ % 60 + 1);  // also a stage
    } else if constexpr (HasFields<T>) {
      value.fields(*this);
    } else {
      fill_container(value);
    }
  }

 private:
  void fill_container(std::string& value) { value = "text " + std::to_string(count_); }
  template <class Tag>
  void fill_container(Bytes32<Tag>& value) {
    const Digest digest = digest_of(std::to_string(count_));
    Bytes32<Tag>::from(digest.view(), &value);
  }
  void fill_container(Signature& value) { value.fill(static_cast<uint8_t>(count_)); }
  template <class T>
  void fill_container(std::optional<T>& value) {
    fill(value.emplace());
  }
  template <class T>
  void fill_container(std::vector<T>& value) {
    value.resize(3);
    for (T& item : value) fill(item);
  }
  uint64_t count_ = 0;
};

template <class T>
T filled() {
  T value;
  Filler().fill(value);
  return value;
}

inline core::RegisterAnswer filled_register_answer() {
  core::RegisterAnswer answer;
  answer.message = "welcome";
  answer.miner = 7;
  answer.session = "session of 16 by";
  answer.run_id = kRun;
  answer.run_spec = std::string("spec\0with zero", 14);
  answer.data_plan = "plan";
  return answer;
}

// SyncRequest and the answers have no fields(): these fill all of them, and these bytes compare all
// of them.
inline core::SyncRequest filled_sync_request() {
  core::SyncRequest request;
  Filler filler;
  filler("", request.miner)("", request.incarnation)("", request.status)("", request.receipts)(
      "", request.lease_request)("", request.leases_wanted)("", request.upload)("", request.shards)(
      "", request.applied)("", request.published_state)("", request.checkpoint)(
      "", request.peers_version)("", request.spec_version)("", request.unreadable_results)("", request.sealed_heard);
  return request;
}
inline std::string bytes_of_request(const core::SyncRequest& request) {
  Encoder encoder;
  encoder("", request.miner)("", request.incarnation)("", request.status)("", request.receipts)(
      "", request.lease_request)("", request.leases_wanted)("", request.upload)("", request.shards)(
      "", request.applied)("", request.published_state)("", request.checkpoint)(
      "", request.peers_version)("", request.spec_version)("", request.unreadable_results)("", request.sealed_heard);
  return encoder.take();
}
inline core::SyncAnswer filled_sync_answer() {
  core::SyncAnswer answer;
  Filler filler;
  core::MergeDirective& merge = answer.merge.emplace();
  filler("", answer.phase)("", answer.reason)("", answer.known)("", answer.receipts_acknowledged)(
      "", answer.lease_request)("", answer.leases)("", answer.peers_version)("", answer.peers)(
      "", answer.assignment)("", merge.target)("", merge.phase)("", merge.uploads)("", merge.tasks)(
      "", merge.results)("", merge.participant)("", merge.outer_learning_rate)(
      "", merge.outer_momentum)("", merge.drop_carry)("", merge.again)("", merge.rounds)("", merge.sealed)(
      "", merge.sealed_heard)("", answer.publish_state)("", answer.checkpoint)("", answer.leave)(
      "", answer.drain)("", answer.spec_version)("", answer.run_spec);
  return answer;
}
inline std::string bytes_of_answer(const core::SyncAnswer& answer) {
  Encoder encoder;
  encoder("", answer.phase)("", answer.reason)("", answer.known)("", answer.receipts_acknowledged)(
      "", answer.lease_request)("", answer.leases)("", answer.peers_version)("", answer.peers)(
      "", answer.assignment)("", answer.publish_state)("", answer.checkpoint)("", answer.leave)(
      "", answer.drain)("", answer.spec_version)("", answer.run_spec);
  encoder("", answer.merge.has_value());
  if (answer.merge) {
    const core::MergeDirective& merge = *answer.merge;
    encoder("", merge.target)("", merge.phase)("", merge.uploads)("", merge.tasks)(
        "", merge.results)("", merge.participant)("", merge.outer_learning_rate)(
        "", merge.outer_momentum)("", merge.drop_carry)("", merge.again)("", merge.rounds)("", merge.sealed)(
      "", merge.sealed_heard);
  }
  return encoder.take();
}

}  // namespace tessera::net
