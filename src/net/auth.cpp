#include "tessera/net/auth.h"

#include <algorithm>

namespace tessera::net {
namespace {

Status unauthenticated(std::string message) {
  return Status(absl::StatusCode::kUnauthenticated, std::move(message));
}

}  // namespace

std::string signed_request_bytes(const AuthHeader& header, std::string_view method,
                                 const NodeId& receiver, std::string_view run_id,
                                 const Digest& body) {
  Encoder encoder;
  encoder.write(std::string("tessera rpc 1"));
  encoder.write(std::string(method));
  encoder.write(receiver);
  encoder.write(std::string(run_id));
  encoder.write(header.node);
  encoder.write(header.stream);
  encoder.write(header.session);
  encoder.write(header.sequence);
  encoder.write(header.unix_ms);
  encoder.write(body);
  return encoder.take();
}

std::string signed_answer_bytes(std::string_view method, const Signature& request,
                                const Digest& body) {
  Encoder encoder;
  encoder.write(std::string("tessera answer 1"));
  encoder.write(std::string(method));
  encoder.write(request);
  encoder.write(body);
  return encoder.take();
}

RequestSigner::RequestSigner(const KeyPair& key, UnixClock clock)
    : key_(key), clock_(std::move(clock)), stream_(random_u64()) {}

AuthHeader RequestSigner::sign(std::string_view method, const NodeId& receiver,
                               std::string_view run_id, std::string_view session,
                               const Digest& body) {
  TESSERA_CHECK(session.size() <= kMaxSessionBytes);
  AuthHeader header;
  header.node = key_.id();
  header.session = std::string(session);
  header.unix_ms = clock_();
  {
    std::lock_guard lock(mutex_);
    if (last_sequence_.size() >= kMaxReceivers && !last_sequence_.contains(receiver)) {
      last_sequence_.clear();
      stream_ = random_u64();
    }
    header.stream = stream_;
    header.sequence = ++last_sequence_[receiver];
  }
  header.signature = key_.sign(signed_request_bytes(header, method, receiver, run_id, body));
  return header;
}

bool ReplayWindow::accept(uint64_t sequence) {
  if (sequence == 0) return false;
  if (sequence > highest_) {
    if (sequence - highest_ >= kWidth) {
      seen_.reset();
    } else {
      for (uint64_t skipped = highest_ + 1; skipped < sequence; ++skipped) {
        seen_.reset(skipped % kWidth);
      }
    }
    highest_ = sequence;
    seen_.set(sequence % kWidth);
    return true;
  }
  if (highest_ - sequence >= kWidth || seen_.test(sequence % kWidth)) return false;
  seen_.set(sequence % kWidth);
  return true;
}

RequestVerifier::RequestVerifier(const NodeId& self, std::string run_id, AuthLimits limits)
    : self_(self), limits_(std::move(limits)), run_id_(std::move(run_id)) {
  TESSERA_CHECK(limits_.max_senders > 0);
}

void RequestVerifier::set_run(std::string run_id) {
  std::lock_guard lock(mutex_);
  run_id_ = std::move(run_id);
}

StatusOr<AuthHeader> RequestVerifier::verify(std::string_view method, std::string_view bytes,
                                             const Digest& body) {
  if (bytes.empty()) {
    return unauthenticated(fmt::format(
        "the request has no {} metadata; every call but Hello must be signed", kAuthMetadata));
  }
  AuthHeader header;
  if (!decode(bytes, &header) || header.session.size() > kMaxSessionBytes) {
    return unauthenticated(
        fmt::format("the {} metadata is malformed; use the same version of Tessera on both sides",
                    kAuthMetadata));
  }
  // Cheapest first; nothing is remembered of a sender before its signature is known to be right.
  const TimeMs now = limits_.clock();
  if (header.unix_ms > now + limits_.max_age_ms || header.unix_ms < now - limits_.max_age_ms) {
    return unauthenticated(fmt::format(
        "the request is stale: signed at {} ms unix time by the sender's clock, it is {} ms here, "
        "and at most {} ms apart are allowed; synchronise both clocks (NTP)",
        header.unix_ms, now, limits_.max_age_ms));
  }
  std::string run_id;
  {
    std::lock_guard lock(mutex_);
    run_id = run_id_;
  }
  if (!tessera::verify(header.node, signed_request_bytes(header, method, self_, run_id, body),
                       header.signature)) {
    return unauthenticated(fmt::format(
        "the signature of node {} does not fit the request: it was changed on the way, or is meant "
        "for another node than {} or another run than {}; register again",
        header.node.brief(), self_.brief(), run_id.empty() ? "none" : to_hex(run_id)));
  }
  if (!accept(header, now)) {
    return unauthenticated(
        fmt::format("node {} sent request {} of this stream before, or more than {} after it, or newer ones of a stream that "
                    "is forgotten by now: a replay; sign it anew, and let no more than {} processes share a key",
                    header.node.brief(), header.sequence, ReplayWindow::kWidth, kStreamsPerSender));
  }
  return header;
}

TimeMs RequestVerifier::Sender::newest_ms() const {
  TimeMs newest = forgotten_ms;
  for (const Stream& stream : streams) newest = std::max(newest, stream.newest_ms);
  return newest;
}

// The request's, now the most recently heard; null if it may be a replay of a forgotten one.
RequestVerifier::Sender* RequestVerifier::sender_of(const AuthHeader& header, TimeMs now) {
  const auto found = by_node_.find(header.node);
  if (found != by_node_.end()) {
    senders_.splice(senders_.begin(), senders_, found->second);
    return &senders_.front();
  }
  if (header.unix_ms <= forgotten_ms_) return nullptr;
  if (senders_.size() >= limits_.max_senders) {
    forgotten_ms_ = std::max(forgotten_ms_, std::min(now, senders_.back().newest_ms()));
    by_node_.erase(senders_.back().node);
    senders_.pop_back();
  }
  senders_.push_front({header.node, 0, {}});
  by_node_[header.node] = senders_.begin();
  return &senders_.front();
}

bool RequestVerifier::accept(const AuthHeader& header, TimeMs now) {
  std::lock_guard lock(mutex_);
  Sender* const sender = sender_of(header, now);
  if (sender == nullptr) return false;
  std::vector<Stream>& streams = sender->streams;
  auto stream = std::find_if(streams.begin(), streams.end(), [&](const Stream& known) { return known.id == header.stream; });
  if (stream == streams.end()) {
    if (header.unix_ms <= sender->forgotten_ms) return false;
    if (streams.size() >= kStreamsPerSender) {
      sender->forgotten_ms = std::max(sender->forgotten_ms, streams.back().newest_ms);
      streams.pop_back();
    }
    stream = streams.insert(streams.end(), {header.stream, 0, {}});
  }
  std::rotate(streams.begin(), stream, stream + 1);
  streams.front().newest_ms = std::max(streams.front().newest_ms, header.unix_ms);
  return streams.front().window.accept(header.sequence);
}

}  // namespace tessera::net
