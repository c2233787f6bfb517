// Frames over loopback.
#include <gmock/gmock.h>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "net/net_fixture.h"
#include "net/socket_bytes.h"
#include "net/wire.h"

namespace tessera::net {
namespace {

using ::testing::HasSubstr;

// Accepts connections (the system does) and never says a word.
class SilentListener {
 public:
  SilentListener() : descriptor_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const raw = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(descriptor_, raw, size), 0);
    EXPECT_EQ(listen(descriptor_, 8), 0);
    EXPECT_EQ(getsockname(descriptor_, raw, &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~SilentListener() { close(descriptor_); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  const int descriptor_;
  int port_ = 0;
};

struct Peers : testing::Test {
  SilentListener silent_;
  SteeredPeer handler;
  KeyPair receiver_key = key_of('r');
  KeyPair sender_key = key_of('s');
  std::unique_ptr<PeerServer> server = started();
  std::unique_ptr<GrpcPeerLink> link = linked(PeerLinkOptions{});

  std::unique_ptr<PeerServer> started(const std::string& listen = kLoopback,
                                      size_t max_frame_bytes = kDefaultMaxFrameBytes) {
    auto result = PeerServer::start(
        PeerServerOptions{
            .listen = listen, .key = receiver_key, .max_frame_bytes = max_frame_bytes},
        &handler);
    EXPECT_TRUE(result.ok()) << result.status();
    (*result)->set_run(kRun);
    return *std::move(result);
  }
  std::unique_ptr<GrpcPeerLink> linked(PeerLinkOptions options) {
    options.signer = std::make_shared<RequestSigner>(sender_key);
    auto result = GrpcPeerLink::create(options);
    result->set_run(kRun);
    return result;
  }
  core::Peer receiver() const {
    core::Peer peer;
    peer.miner = 3;
    peer.node = receiver_key.id();
    peer.address = server->address();
    return peer;
  }
  core::Admission send(const core::Peer& peer, std::string frame, uint32_t timeout_ms = 20000) {
    Answer<core::Admission> answer;
    link->send(peer, std::move(frame), timeout_ms, answer.callback());
    return answer.get();
  }
};

std::string patterned(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);
  return bytes;
}

TEST_F(Peers, FramesArriveWhole) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{5000}, size_t{20} << 20}) {
    Answer<Digest> arrived;
    handler.arrived = [&](const ports::Caller& caller, std::string frame, auto done) {
      EXPECT_EQ(caller.node, sender_key.id());
      arrived.callback()(digest_of(frame));
      done(core::Admission::kAccepted);
    };
    const std::string frame = patterned(size);
    EXPECT_EQ(send(receiver(), frame), core::Admission::kAccepted);
    EXPECT_EQ(arrived.get(), digest_of(frame));
  }
}

TEST_F(Peers, EveryAdmissionTravels) {
  for (int value = 0; value < static_cast<int>(core::Admission::kUnreachable); ++value) {
    const auto admission = static_cast<core::Admission>(value);
    handler.arrived = [&](const ports::Caller&, std::string, auto done) { done(admission); };
    EXPECT_EQ(send(receiver(), "frame"), admission);
  }
}

TEST_F(Peers, AProbeIsAnsweredWithTheHealth) {
  Answer<StatusOr<core::PeerHealth>> answer;
  link->probe(receiver(), 20000, answer.callback());
  const StatusOr<core::PeerHealth> health = answer.get();
  ASSERT_TRUE(health.ok()) << health.status();
  EXPECT_EQ(encode(*health), encode(handler.health));
}

TEST_F(Peers, AProbeIsAnsweredWhileFramesKeepTheHandlerBusy) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  handler.arrived = [released](const ports::Caller&, std::string, auto done) {
    released.wait();
    done(core::Admission::kAccepted);
  };
  std::vector<Answer<core::Admission>> frames(8);
  for (auto& frame : frames) link->send(receiver(), patterned(1 << 20), 20000, frame.callback());
  Answer<StatusOr<core::PeerHealth>> health;
  link->probe(receiver(), 20000, health.callback());
  EXPECT_TRUE(health.get().ok());
  release.set_value();
  for (auto& frame : frames) EXPECT_EQ(frame.get(), core::Admission::kAccepted);
}

TEST_F(Peers, WhatAReplicaGivesAwayIsFetchedByName) {
  std::map<Digest, std::string> chunks;
  std::vector<Digest> names;
  for (const char letter : {'a', 'b', 'c'}) {
    const std::string chunk(kMaxBlobBytes, letter);
    names.push_back(digest_of(chunk));
    chunks[names.back()] = chunk;
  }
  handler.gives = [&](const Digest& name) -> StatusOr<std::string> {
    if (chunks.count(name) == 0) return not_found("it moved on");
    return chunks.at(name);
  };
  const auto links = GrpcDonorLinks::create(std::make_shared<RequestSigner>(sender_key));
  links->set_run(kRun);
  const auto donor = links->connect(receiver());
  const auto contents = donor->get(names);  // more than fits a call
  ASSERT_TRUE(contents.ok()) << contents.status();
  for (size_t i = 0; i < names.size(); ++i) EXPECT_TRUE(contents->at(i) == chunks.at(names[i]));
  EXPECT_TRUE(absl::IsNotFound(donor->get({digest_of("another")}).status()));
  chunks[names[1]][0] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(donor->get({names[1]}).status()));
  EXPECT_FALSE(donor->put({"a blob"}).ok());
  core::Peer another = receiver();
  another.node = key_of('x').id();
  EXPECT_FALSE(links->connect(another)->get({names[0]}).ok());  // it must prove that it is the one that was named
  server.reset();
  EXPECT_TRUE(absl::IsUnavailable(donor->get({names[0]}).status()));
}

TEST_F(Peers, AProbeOfNobodyFails) {
  const core::Peer peer = receiver();
  server.reset();
  Answer<StatusOr<core::PeerHealth>> answer;
  link->probe(peer, 20000, answer.callback());
  EXPECT_TRUE(absl::IsUnavailable(answer.get().status()));
}

// Patience is longer than this test may take: only the break can answer.
TEST_F(Peers, ABrokenStreamIsToldAndFailsWhatWaitsOnIt) {
  constexpr uint32_t kPatienceMs = 600'000;
  const core::Peer peer = receiver();
  Answer<NodeId> broken;
  link->on_broken([callback = broken.callback()](const NodeId& node) { callback(node); });
  Answer<bool> arrived;
  handler.arrived = [&](const ports::Caller&, std::string, auto) { arrived.callback()(true); };
  std::vector<Answer<core::Admission>> frames(3);
  link->send(peer, "frame", kPatienceMs, frames[0].callback());
  arrived.get();
  handler.arrived = [](const ports::Caller&, std::string, auto) {};
  link->send(peer, "frame", kPatienceMs, frames[1].callback());
  link->send(peer, patterned(20 << 20), kPatienceMs, frames[2].callback());
  server.reset();
  for (auto& frame : frames) EXPECT_EQ(frame.get(), core::Admission::kUnreachable);
  EXPECT_EQ(broken.get(), peer.node);
  // A second call of `broken` would set the promise again, which throws: what was never open does
  // not break.
  EXPECT_EQ(send(peer, "frame"), core::Admission::kUnreachable);
}

TEST_F(Peers, ClosingALinkBreaksNothing) {
  link->on_broken([](const NodeId&) { ADD_FAILURE(); });
  EXPECT_EQ(send(receiver(), "frame"), core::Admission::kAccepted);
  link->set_run("another run");
  EXPECT_EQ(send(receiver(), "frame"), core::Admission::kUnauthenticated);
  link.reset();
}

TEST_F(Peers, ASlowFrameDoesNotEndTheStream) {
  link->on_broken([](const NodeId&) { ADD_FAILURE(); });
  std::promise<SteeredPeer::Done> held;
  handler.arrived = [&](const ports::Caller&, std::string, auto done) {
    held.set_value(std::move(done));
  };
  EXPECT_EQ(send(receiver(), "slow", 100), core::Admission::kUnreachable);
  handler.arrived = [](const ports::Caller&, std::string, auto done) {
    done(core::Admission::kAccepted);
  };
  EXPECT_EQ(send(receiver(), "quick"), core::Admission::kAccepted);
  held.get_future().get()(core::Admission::kAccepted);  // too late: nobody listens
  EXPECT_EQ(send(receiver(), "quick"), core::Admission::kAccepted);
}

TEST_F(Peers, AFullQueueRefuses) {
  PeerLinkOptions options;
  options.max_queued_frames = 4;
  link = linked(options);
  // Nobody listens at this address, and it does not refuse either: the queue does not move.
  core::Peer peer = receiver();
  peer.address = silent_.address();
  std::vector<Answer<core::Admission>> queued(4);
  for (auto& answer : queued) link->send(peer, "frame", 500, answer.callback());
  EXPECT_EQ(send(peer, "frame"), core::Admission::kFull);
  for (auto& answer : queued) EXPECT_EQ(answer.get(), core::Admission::kUnreachable);
}

TEST_F(Peers, APeerThatNeverAnswersIsUnreachableAfterTheDeadline) {
  std::vector<SteeredPeer::Done> kept;
  handler.arrived = [&](const ports::Caller&, std::string, auto done) {
    kept.push_back(std::move(done));
  };
  EXPECT_EQ(send(receiver(), "frame", 200), core::Admission::kUnreachable);
  server->shutdown();
  for (const auto& done : kept) done(core::Admission::kAccepted);
}

TEST_F(Peers, NobodyListens) {
  const core::Peer peer = receiver();
  server.reset();
  EXPECT_EQ(send(peer, "frame"), core::Admission::kUnreachable);
  core::Peer nonsense = peer;
  nonsense.address = "unix:/tmp/socket";
  EXPECT_EQ(send(nonsense, "frame"), core::Admission::kUnreachable);
}

TEST_F(Peers, AReturnedPeerIsFoundAgain) {
  const core::Peer peer = receiver();
  ASSERT_EQ(send(peer, "frame"), core::Admission::kAccepted);
  server.reset();
  EXPECT_EQ(send(peer, "frame"), core::Admission::kUnreachable);
  server = started(peer.address);
  const TimeMs deadline = monotonic_now_ms() + 10000;
  core::Admission admission = core::Admission::kUnreachable;
  while (admission != core::Admission::kAccepted && monotonic_now_ms() < deadline) {
    admission = send(peer, "frame", 500);
  }
  EXPECT_EQ(admission, core::Admission::kAccepted);
}

TEST_F(Peers, AnotherKeyThanThePeerTablesIsNotTrusted) {
  core::Peer peer = receiver();
  peer.node = key_of('x').id();
  EXPECT_EQ(send(peer, "frame"), core::Admission::kUnauthenticated);
}

TEST_F(Peers, AnotherRunIsRefused) {
  link->set_run("another run");
  EXPECT_EQ(send(receiver(), "frame"), core::Admission::kUnauthenticated);
}

TEST_F(Peers, BeforeItsRegistrationAPeerIsNotReady) {
  server =
      *PeerServer::start(PeerServerOptions{.listen = kLoopback, .key = receiver_key}, &handler);
  EXPECT_EQ(send(receiver(), "frame"), core::Admission::kNotReady);
  server->set_run(kRun);
  EXPECT_EQ(send(receiver(), "frame"), core::Admission::kAccepted);
}

TEST_F(Peers, AFrameOverTheLimitIsNotSent) {
  PeerLinkOptions options;
  options.max_frame_bytes = 1000;
  link = linked(options);
  EXPECT_EQ(send(receiver(), std::string(1000, 'f')), core::Admission::kAccepted);
  EXPECT_EQ(send(receiver(), std::string(2000, 'f')), core::Admission::kCorrupt);
}

TEST_F(Peers, AFrameOverTheReceiversLimitIsRefused) {
  server = started(kLoopback, 1000);
  EXPECT_EQ(send(receiver(), std::string(1000, 'f')), core::Admission::kAccepted);
  EXPECT_NE(send(receiver(), std::string(2000, 'f')), core::Admission::kAccepted);
}

TEST_F(Peers, TheIdlestConnectionMakesRoom) {
  PeerLinkOptions options;
  options.max_channels = 2;
  link = linked(options);
  std::vector<std::unique_ptr<PeerServer>> servers;
  for (int i = 0; i < 4; ++i) {
    servers.push_back(started());
    core::Peer peer = receiver();
    peer.address = servers.back()->address();
    EXPECT_EQ(send(peer, "frame"), core::Admission::kAccepted);
  }
}

TEST_F(Peers, BusyConnectionsAreNotClosedForRoom) {
  PeerLinkOptions options;
  options.max_channels = 1;
  link = linked(options);
  Answer<SteeredPeer::Done> held;
  handler.arrived = [&](const ports::Caller&, std::string, auto done) {
    held.callback()(std::move(done));
  };
  Answer<core::Admission> first;
  link->send(receiver(), "frame", 20000, first.callback());
  const auto done = held.get();
  const auto other = started();
  core::Peer peer = receiver();
  peer.address = other->address();
  EXPECT_EQ(send(peer, "frame"), core::Admission::kUnreachable);
  done(core::Admission::kFull);
  EXPECT_EQ(first.get(), core::Admission::kFull);
}

TEST_F(Peers, ManyAtOnce) {
  std::vector<Answer<core::Admission>> answers(200);
  for (auto& answer : answers) {
    link->send(receiver(), std::string(1000, 'f'), 20000, answer.callback());
  }
  for (auto& answer : answers) EXPECT_EQ(answer.get(), core::Admission::kAccepted);
}

TEST_F(Peers, DestroyingTheLinkEndsItsCalls) {
  Answer<bool> arrived;
  handler.arrived = [&](const ports::Caller&, std::string, auto) { arrived.callback()(true); };
  Answer<core::Admission> answer;
  link->send(receiver(), "frame", 20000, answer.callback());
  arrived.get();
  link.reset();
  EXPECT_EQ(answer.get(), core::Admission::kUnreachable);
}

TEST_F(Peers, BytesSentCountsThePayloadAndNeverShrinks) {
  EXPECT_EQ(link->bytes_sent(), 0u);
  constexpr size_t kFrame = 1 << 20;
  ASSERT_EQ(send(receiver(), patterned(kFrame)), core::Admission::kAccepted);
  const auto counted = [&](uint64_t at_least) {
    // The sockets are looked at every 200 ms: ask until then.
    const TimeMs deadline = monotonic_now_ms() + 5000;
    uint64_t bytes = 0;
    while ((bytes = link->bytes_sent()) < at_least && monotonic_now_ms() < deadline) {
      std::this_thread::yield();
    }
    return bytes;
  };
  const uint64_t first = counted(kFrame);
  EXPECT_GE(first, kFrame);
  EXPECT_LT(first, kFrame + kFrame / 10);
  ASSERT_EQ(send(receiver(), patterned(kFrame)), core::Admission::kAccepted);
  const uint64_t second = counted(2 * kFrame);
  EXPECT_GE(second, 2 * kFrame);
  // Of a closed connection what was seen stays, and a new one adds to it.
  const core::Peer peer = receiver();
  server.reset();
  server = started(peer.address);
  while (send(peer, patterned(kFrame), 5000) != core::Admission::kAccepted) {
  }
  EXPECT_GE(counted(second + kFrame), second + kFrame);
}

TEST(SocketByteCounter, NamesThatAreNoAddressesAreLeftOut) {
  SocketByteCounter counter;
  for (const char* name : {"", "ipv4:", "ipv4:1.2.3.4", "ipv6:%5B::1%5D", "ipv4:1.2.3.4:99999",
                           "unix:/tmp/x", "dns:///host:1", "ipv6:%5Bfe80::1%25eth0%5D:1"}) {
    counter.watch(name);
  }
  EXPECT_EQ(counter.total(1), 0u);
}

TEST_F(Peers, PortInUseSaysSo) {
  const auto second = PeerServer::start(
      PeerServerOptions{.listen = server->address(), .key = receiver_key}, &handler);
  EXPECT_THAT(message_of(second.status()), HasSubstr("address already in use"));
}

}  // namespace
}  // namespace tessera::net
