// Peers that break, lie or abuse the stream.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <tessera/v1/peer.grpc.pb.h>

#include "net/net_fixture.h"
#include "net/stream_opening.h"
#include "net/stream_record.h"
#include "net/wire.h"

namespace tessera::net {
namespace {

using ::testing::HasSubstr;

// More than any test waits: what must come at once comes before it.
constexpr uint32_t kVeryPatientMs = 600'000;

v1::StreamRecord message_of_record(const grpc::ByteBuffer& buffer) {
  v1::StreamRecord message;
  EXPECT_TRUE(parse(buffer, &message).ok());
  return message;
}

// A sender that may do what no link does.
class RawCaller {
 public:
  RawCaller(const std::string& address, const KeyPair& key, const NodeId& receiver,
            const std::string& run)
      : channel_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())),
        stub_(v1::Peer::NewStub(channel_)),
        signer_(key),
        opening_(signer_, receiver, run) {
    context_.set_deadline(std::chrono::system_clock::now() + kBound);
    opening_.add_metadata(&context_);
  }
  void open() {
    stream_ = stub_->Exchange(&context_);
    stream_->WaitForInitialMetadata();
    auto keys = opening_.finish(context_);
    if (!keys.ok()) return;
    sealer_.emplace(keys->frames);
    opener_.emplace(keys->answers);
  }
  bool is_open() const { return sealer_.has_value(); }
  void send(const Record& record, const std::string& content) {
    send_raw(message_of_record(sealer_->seal(record, grpc::Slice(content))));
  }
  void send_raw(const v1::StreamRecord& message) { stream_->Write(message); }
  // The next admission, or nothing when the stream ended.
  std::optional<core::Admission> admission() {
    v1::StreamRecord message;
    if (!stream_->Read(&message)) return std::nullopt;
    const auto received = opener_->open(buffer_of(message.SerializeAsString()));
    EXPECT_TRUE(received.ok()) << received.status();
    return static_cast<core::Admission>(received->record.position);
  }
  Status end() {
    v1::StreamRecord message;
    while (stream_->Read(&message)) {
    }
    return from_grpc(stream_->Finish());
  }
  grpc::ClientContext& context() { return context_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Peer::Stub> stub_;
  RequestSigner signer_;
  CallerOpening opening_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StreamRecord, v1::StreamRecord>> stream_;
  std::optional<RecordSealer> sealer_;
  std::optional<RecordOpener> opener_;
};

Record begin(uint64_t id, uint64_t size) { return {RecordKind::kBegin, id, size, 1, 20000}; }

struct AbusedServer : testing::Test {
  SteeredPeer handler;
  KeyPair receiver_key = key_of('r');
  std::unique_ptr<PeerServer> server = started();
  std::unique_ptr<PeerServer> started() {
    auto result = PeerServer::start(
        PeerServerOptions{.listen = kLoopback, .key = receiver_key, .max_frame_bytes = 1 << 20},
        &handler);
    (*result)->set_run(kRun);
    return *std::move(result);
  }
  std::unique_ptr<RawCaller> caller(char key = 's') {
    auto result =
        std::make_unique<RawCaller>(server->address(), key_of(key), receiver_key.id(), kRun);
    result->open();
    return result;
  }
  // Whatever the others did, this still works.
  void TearDown() override {
    const auto honest = caller('h');
    ASSERT_TRUE(honest->is_open());
    honest->send(begin(1, 5), "frame");
    EXPECT_EQ(honest->admission(), core::Admission::kAccepted);
  }
};

TEST_F(AbusedServer, GarbageEndsTheStream) {
  const auto raw = caller();
  v1::StreamRecord message;
  message.set_record(std::string(100, 'g'));
  raw->send_raw(message);
  EXPECT_TRUE(absl::IsUnauthenticated(raw->end()));
}

TEST_F(AbusedServer, AReplayedRecordEndsTheStream) {
  const auto raw = caller();
  RecordSealer unkeyed{Digest()};
  raw->send(begin(1, 5), "frame");
  EXPECT_EQ(raw->admission(), core::Admission::kAccepted);
  raw->send_raw(message_of_record(unkeyed.seal(begin(1, 5), grpc::Slice("frame"))));
  EXPECT_TRUE(absl::IsUnauthenticated(raw->end()));
}

TEST_F(AbusedServer, ARepeatedOpeningIsRefused) {
  const auto raw = caller();
  ASSERT_TRUE(raw->is_open());
  // The same metadata once more, as somebody on the way could send them.
  grpc::ClientContext again;
  RequestSigner signer(key_of('s'));
  const CallerOpening opening(signer, receiver_key.id(), kRun);
  opening.add_metadata(&again);
  const auto stub = v1::Peer::NewStub(
      grpc::CreateChannel(server->address(), grpc::InsecureChannelCredentials()));
  auto first = stub->Exchange(&again);
  first->WaitForInitialMetadata();
  EXPECT_TRUE(opening.finish(again).ok());
  grpc::ClientContext replayed;
  opening.add_metadata(&replayed);
  auto second = stub->Exchange(&replayed);
  const Status status = from_grpc(second->Finish());
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr("a replay"));
  again.TryCancel();
  first->Finish();
}

TEST_F(AbusedServer, OpeningsForAnotherRunOrNodeOrUnsignedAreRefused) {
  RawCaller other_run(server->address(), key_of('s'), receiver_key.id(), "other run");
  other_run.open();
  EXPECT_TRUE(absl::IsUnauthenticated(other_run.end()));
  RawCaller other_node(server->address(), key_of('s'), key_of('x').id(), kRun);
  other_node.open();
  EXPECT_TRUE(absl::IsUnauthenticated(other_node.end()));
  const auto stub = v1::Peer::NewStub(
      grpc::CreateChannel(server->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const Status status = from_grpc(stub->Exchange(&context)->Finish());
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
}

TEST_F(AbusedServer, ChunkAbuseEndsTheStream) {
  const auto raw = caller();
  raw->send(begin(1, 100), "first");
  raw->send({RecordKind::kChunk, 1, 50}, "beyond a gap");
  EXPECT_TRUE(absl::IsInvalidArgument(raw->end()));
}

TEST_F(AbusedServer, AFrameOverTheLimitCostsOnlyItself) {
  const auto raw = caller();
  raw->send(begin(1, (1 << 20) + 1), "first");
  EXPECT_EQ(raw->admission(), core::Admission::kCorrupt);
  raw->send({RecordKind::kChunk, 1, 5}, "the rest");
  raw->send(begin(2, 5), "frame");
  EXPECT_EQ(raw->admission(), core::Admission::kAccepted);
}

TEST_F(AbusedServer, ANodesThirdStreamEndsItsFirst) {
  const auto first = caller();
  const auto second = caller();
  const auto third = caller();
  EXPECT_EQ(first->end().code(), absl::StatusCode::kAborted);
  for (RawCaller* raw : {second.get(), third.get()}) {
    raw->send(begin(1, 5), "frame");
    EXPECT_EQ(raw->admission(), core::Admission::kAccepted);
  }
}

TEST_F(AbusedServer, AnotherRunEndsTheStreams) {
  const auto raw = caller();
  server->set_run(kRun);  // the same: nothing happens
  raw->send(begin(1, 5), "frame");
  EXPECT_EQ(raw->admission(), core::Admission::kAccepted);
  server->set_run("the next run");
  EXPECT_TRUE(absl::IsFailedPrecondition(raw->end()));
  server->set_run(kRun);
}

// A peer of the test's own making: `talk` has the stream after the metadata that `greet` gave.
class FakePeer final : public v1::Peer::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::StreamRecord, v1::StreamRecord>;
  std::function<void(grpc::ServerContext*)> greet;
  std::function<void(Stream*)> talk;
  grpc::Status Exchange(grpc::ServerContext* context, Stream* stream) override {
    greet(context);
    stream->SendInitialMetadata();
    if (talk) talk(stream);
    v1::StreamRecord message;
    while (stream->Read(&message)) {
    }
    return grpc::Status::OK;
  }
};

struct ImpostorPeer : testing::Test {
  FakePeer peer;
  KeyPair honest_key = key_of('h');
  RequestVerifier verifier{honest_key.id(), kRun, AuthLimits{}};
  std::optional<StreamKeys> keys;
  int port = 0;
  std::unique_ptr<grpc::Server> server = started();

  std::unique_ptr<grpc::Server> started() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(kLoopback, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&peer);
    return builder.BuildAndStart();
  }
  void greet_with(const KeyPair& key) {
    peer.greet = [this, &key](grpc::ServerContext* context) {
      auto opening = accept_opening(verifier, key, context);
      if (opening.ok()) keys = opening->keys;
    };
  }
  core::Admission send_frame() const {
    PeerLinkOptions options;
    options.signer = std::make_shared<RequestSigner>(key_of('m'));
    const auto link = GrpcPeerLink::create(options);
    link->set_run(kRun);
    core::Peer to;
    to.node = honest_key.id();
    to.address = "127.0.0.1:" + std::to_string(port);
    Answer<core::Admission> answer;
    link->send(to, "frame", kVeryPatientMs, answer.callback());
    return answer.get();
  }
  // Answers with the record, sealed with `key` if there is one.
  void answer_with(const Record& record, std::optional<Digest> key = {}) {
    greet_with(honest_key);
    peer.talk = [this, record, key](FakePeer::Stream* stream) {
      v1::StreamRecord message;
      stream->Read(&message);
      RecordSealer sealer(key.value_or(keys->answers));
      stream->Write(message_of_record(sealer.seal(record, {})));
    };
  }
};

TEST_F(ImpostorPeer, MustHaveTheKeyOfThePeerTable) {
  peer.greet = [](grpc::ServerContext*) {};
  EXPECT_EQ(send_frame(), core::Admission::kUnauthenticated);
  peer.greet = [](grpc::ServerContext* context) {
    context->AddInitialMetadata(kStreamMetadata, "stream");
    context->AddInitialMetadata(kAnswerMetadata, std::string(64, 's'));
  };
  EXPECT_EQ(send_frame(), core::Admission::kUnauthenticated);
  const KeyPair other = key_of('o');
  greet_with(other);
  EXPECT_EQ(send_frame(), core::Admission::kUnauthenticated);
}

TEST_F(ImpostorPeer, CanNotAnswerInAnOpenStream) {
  const Record accepted{RecordKind::kAdmission, 1,
                        static_cast<uint64_t>(core::Admission::kAccepted)};
  answer_with(accepted);
  EXPECT_EQ(send_frame(), core::Admission::kAccepted);
  answer_with(accepted, digest_of("another key"));
  EXPECT_EQ(send_frame(), core::Admission::kUnauthenticated);
}

TEST_F(ImpostorPeer, AnswersThatAreNoAdmissionsEndTheStream) {
  answer_with({RecordKind::kAdmission, 1, static_cast<uint64_t>(core::Admission::kUnreachable)});
  EXPECT_EQ(send_frame(), core::Admission::kCorrupt);
  answer_with({RecordKind::kChunk, 1, 0});
  EXPECT_EQ(send_frame(), core::Admission::kCorrupt);
}

}  // namespace
}  // namespace tessera::net
