// Register, sync, query and command over loopback, and who is let in.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <tessera/v1/orchestrator.pb.h>

#include "net/convert.h"
#include "net/net_fixture.h"
#include "net/proto_fields.h"
#include "net/wire.h"

namespace tessera::net {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Orchestrator : testing::Test {
  SteeredOrchestrator handler;
  KeyPair server_key = key_of('o');
  KeyPair miner_key = key_of('m');
  std::unique_ptr<OrchestratorServer> server = started(server_key, &handler);

  static std::unique_ptr<OrchestratorServer> started(const KeyPair& key,
                                                     ports::OrchestratorHandler* handler,
                                                     const std::string& listen = kLoopback) {
    auto server = OrchestratorServer::start(
        OrchestratorServerOptions{
            .listen = listen, .key = key, .run_id = kRun, .software = "server 1"},
        handler, nullptr);
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }
  OrchestratorLinkOptions link_options() const {
    OrchestratorLinkOptions options;
    options.orchestrator = server->address();
    options.signer = std::make_shared<RequestSigner>(miner_key);
    options.software = "client 1";
    return options;
  }
  static std::unique_ptr<GrpcOrchestratorLink> linked(OrchestratorLinkOptions options) {
    return *GrpcOrchestratorLink::create(std::move(options));
  }
  core::Registration registration() const {
    auto result = filled<core::Registration>();
    result.node = miner_key.id();
    return result;
  }
  StatusOr<core::RegisterAnswer> register_at(GrpcOrchestratorLink& link) const {
    Answer<StatusOr<core::RegisterAnswer>> answer;
    link.register_miner(registration(), answer.callback());
    return answer.get();
  }
  static StatusOr<core::SyncAnswer> sync_at(GrpcOrchestratorLink& link,
                                            const core::SyncRequest& request) {
    Answer<StatusOr<core::SyncAnswer>> answer;
    link.sync(request, answer.callback());
    return answer.get();
  }
  void accept_registrations() {
    handler.registered = [](const ports::Caller&, core::Registration, auto done) {
      done(filled_register_answer());
    };
  }

  // One call with these exact bytes, signed as `header` says, past all that the links do.
  grpc::Status raw_call(const char* method, const std::string& body, const std::string& header) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    grpc::GenericStub stub(grpc::CreateCustomChannel(
        server->address(), grpc::InsecureChannelCredentials(), arguments));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kBound);
    if (!header.empty()) context.AddMetadata(kAuthMetadata, header);
    const grpc::ByteBuffer request = buffer_of(body);
    grpc::ByteBuffer response;
    Answer<grpc::Status> answer;
    stub.UnaryCall(&context, method, {}, &request, &response, answer.callback());
    return answer.get();
  }
  static std::string query_body() {
    v1::QueryRequest request;
    request.set_topic("status");
    return request.SerializeAsString();
  }
  std::string header_for(const std::string& body) {
    RequestSigner signer(miner_key);
    return encode(signer.sign(kQueryMethod, server_key.id(), kRun, "", digest_of(body)));
  }
};

TEST_F(Orchestrator, HelloTellsWhoAndWhichRun) {
  const auto info = linked(link_options())->hello();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->node, server_key.id());
  EXPECT_EQ(info->run_id, kRun);
  EXPECT_EQ(info->software, "server 1");
}

TEST_F(Orchestrator, RegisterAndSyncCarryEveryField) {
  Answer<std::string> session, registered, synced;
  handler.registered = [&](const ports::Caller& caller, core::Registration value, auto done) {
    EXPECT_EQ(caller.node, miner_key.id());
    EXPECT_EQ(caller.session, "");
    EXPECT_THAT(caller.address, HasSubstr("127.0.0.1"));
    registered.callback()(encode(value));
    done(filled_register_answer());
  };
  handler.synced = [&](const ports::Caller& caller, core::SyncRequest request, auto done) {
    session.callback()(caller.session);
    synced.callback()(bytes_of_request(request));
    done(filled_sync_answer());
  };
  const auto link = linked(link_options());
  const auto answer = register_at(*link);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(registered.get(), encode(registration()));
  const auto expected = filled_register_answer();
  EXPECT_EQ(answer->refusal, expected.refusal);
  EXPECT_EQ(answer->message, expected.message);
  EXPECT_EQ(answer->miner, expected.miner);
  EXPECT_EQ(answer->session, expected.session);
  EXPECT_EQ(answer->run_id, expected.run_id);
  EXPECT_EQ(answer->run_spec, expected.run_spec);
  EXPECT_EQ(answer->data_plan, expected.data_plan);

  const auto sync_answer = sync_at(*link, filled_sync_request());
  ASSERT_TRUE(sync_answer.ok()) << sync_answer.status();
  EXPECT_EQ(session.get(), expected.session);
  EXPECT_EQ(synced.get(), bytes_of_request(filled_sync_request()));
  EXPECT_EQ(bytes_of_answer(*sync_answer), bytes_of_answer(filled_sync_answer()));
}

TEST_F(Orchestrator, AHandlerMayAnswerLaterFromAnotherThread) {
  accept_registrations();
  Answer<SteeredOrchestrator::SyncDone> asked;
  handler.synced = [&](const ports::Caller&, core::SyncRequest, auto done) {
    asked.callback()(std::move(done));
  };
  const auto link = linked(link_options());
  ASSERT_TRUE(register_at(*link).ok());
  Answer<StatusOr<core::SyncAnswer>> answer;
  link->sync({}, answer.callback());
  const auto done = asked.get();
  done(filled_sync_answer());
  done(unavailable("a second answer does nothing"));
  EXPECT_TRUE(answer.get().ok());
}

TEST_F(Orchestrator, QueryAndCommand) {
  const auto link = linked(link_options());
  EXPECT_EQ(*link->query("status", "all"), "query status all " + miner_key.id().brief());
  const Status refused = link->command("stop", "now").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(message_of(refused), HasSubstr("command stop now refused"));
  EXPECT_THAT(message_of(refused), StartsWith("orchestrator 127.0.0.1:"));
  const Status too_long = link->query(std::string(300, 't'), "").status();
  EXPECT_TRUE(absl::IsInvalidArgument(too_long));
  EXPECT_THAT(message_of(too_long), HasSubstr("topic: 300 bytes"));
}

TEST_F(Orchestrator, SyncNeedsARegistration) {
  const auto link = linked(link_options());
  EXPECT_TRUE(absl::IsFailedPrecondition(sync_at(*link, {}).status()));
}

TEST_F(Orchestrator, OneRegistersItselfOnly) {
  const auto link = linked(link_options());
  core::Registration other = registration();
  other.node = key_of('x').id();
  Answer<StatusOr<core::RegisterAnswer>> answer;
  link->register_miner(other, answer.callback());
  EXPECT_THAT(message_of(answer.get().status()), HasSubstr("registration.node"));
}

TEST_F(Orchestrator, ANewerProtocolIsRefusedNamingWhatToUpgrade) {
  v1::RegisterRequest request;
  request.set_protocol_version(core::kProtocolVersion + 1);
  to_proto(registration(), request.mutable_registration());
  const std::string body = request.SerializeAsString();
  RequestSigner signer(miner_key);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kBound);
  context.AddMetadata(kAuthMetadata, encode(signer.sign(kRegisterMethod, server_key.id(), kRun, "",
                                                        digest_of(body))));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  grpc::GenericStub stub(
      grpc::CreateCustomChannel(server->address(), grpc::InsecureChannelCredentials(), arguments));
  const grpc::ByteBuffer bytes = buffer_of(body);
  Answer<grpc::Status> done;
  stub.UnaryCall(&context, kRegisterMethod, {}, &bytes, &response, done.callback());
  ASSERT_TRUE(done.get().ok());
  v1::RegisterAnswer answer;
  ASSERT_TRUE(parse(response, &answer).ok());
  EXPECT_EQ(answer.refusal(), v1::REGISTER_REFUSAL_PROTOCOL_VERSION);
  EXPECT_THAT(answer.message(),
              AllOf(HasSubstr("speaks protocol version 2"), HasSubstr("speaks 3; upgrade the "
                                                                      "orchestrator")));
}

TEST_F(Orchestrator, DeadlineOfAHandlerThatNeverAnswers) {
  accept_registrations();
  std::vector<SteeredOrchestrator::SyncDone> kept;
  handler.synced = [&](const ports::Caller&, core::SyncRequest, auto done) {
    kept.push_back(std::move(done));
  };
  OrchestratorLinkOptions options = link_options();
  options.timeout_ms = 700;
  const auto link = linked(options);
  ASSERT_TRUE(register_at(*link).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(sync_at(*link, {}).status()));
  server->shutdown();
  for (const auto& done : kept) done(filled_sync_answer());  // too late: nothing happens
}

TEST_F(Orchestrator, NobodyListens) {
  OrchestratorLinkOptions options = link_options();
  server->shutdown();
  const Status status = linked(options)->query("status", "").status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(message_of(status), StartsWith("orchestrator 127.0.0.1:"));
}

TEST_F(Orchestrator, ShutdownAnswersWhatIsPending) {
  accept_registrations();
  Answer<bool> arrived;
  SteeredOrchestrator::SyncDone kept;
  handler.synced = [&](const ports::Caller&, core::SyncRequest, auto done) {
    kept = std::move(done);
    arrived.callback()(true);
  };
  const auto link = linked(link_options());
  ASSERT_TRUE(register_at(*link).ok());
  Answer<StatusOr<core::SyncAnswer>> answer;
  link->sync({}, answer.callback());
  arrived.get();
  server->shutdown();
  const auto result = answer.get();
  EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
  server.reset();
  kept(filled_sync_answer());
}

TEST_F(Orchestrator, DestroyingALinkEndsItsCalls) {
  accept_registrations();
  Answer<bool> arrived;
  handler.synced = [&](const ports::Caller&, core::SyncRequest, auto) {
    arrived.callback()(true);  // and never answers
  };
  auto link = linked(link_options());
  ASSERT_TRUE(register_at(*link).ok());
  Answer<StatusOr<core::SyncAnswer>> answer;
  link->sync({}, answer.callback());
  arrived.get();
  link.reset();
  EXPECT_TRUE(absl::IsCancelled(answer.get().status()));
}

TEST_F(Orchestrator, PortInUseSaysSo) {
  const auto second = OrchestratorServer::start(
      OrchestratorServerOptions{.listen = server->address(), .key = server_key}, &handler, nullptr);
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_THAT(message_of(second.status()),
              StartsWith(server->address() + ": can't listen: address already in use"));
}

TEST_F(Orchestrator, AWrongListenAddressSaysSo) {
  const auto wrong = [&](const char* listen) {
    return message_of(
        OrchestratorServer::start(OrchestratorServerOptions{.listen = listen, .key = server_key},
                                  &handler, nullptr)
            .status());
  };
  EXPECT_THAT(wrong("7700"), HasSubstr("write host:port"));
  EXPECT_THAT(wrong("192.0.2.1:0"), HasSubstr("no such address"));
}

TEST_F(Orchestrator, APinnedIdMustBeTheServers) {
  OrchestratorLinkOptions options = link_options();
  options.expected_orchestrator = key_of('x').id();
  const Status status = linked(options)->hello().status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr(key_of('x').id().hex()));
  options.expected_orchestrator = server_key.id();
  EXPECT_TRUE(linked(options)->hello().ok());
}

TEST_F(Orchestrator, TheFirstIdMetIsTheOnlyOneTrusted) {
  const auto link = linked(link_options());
  ASSERT_TRUE(link->hello().ok());
  const std::string address = server->address();
  server.reset();
  const auto impostor = started(key_of('i'), &handler, address);
  StatusOr<HelloInfo> info = link->hello();
  // The first call may still meet the connection's end.
  for (int i = 0; i < 50 && absl::IsUnavailable(info.status()); ++i) info = link->hello();
  EXPECT_TRUE(absl::IsFailedPrecondition(info.status())) << info.status();
  EXPECT_THAT(message_of(info.status()), HasSubstr("it was node"));
}

TEST_F(Orchestrator, UnsignedCallsAreRefused) {
  const grpc::Status status = raw_call(kQueryMethod, query_body(), "");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(Orchestrator, AChangedByteIsNoticed) {
  const std::string header = header_for(query_body());
  std::string body = query_body();
  body.back() ^= 1;
  EXPECT_EQ(raw_call(kQueryMethod, body, header).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(raw_call(kCommandMethod, query_body(), header).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(raw_call(kQueryMethod, query_body(), header).ok());
}

TEST_F(Orchestrator, AReplayIsRefused) {
  const std::string header = header_for(query_body());
  EXPECT_TRUE(raw_call(kQueryMethod, query_body(), header).ok());
  const grpc::Status again = raw_call(kQueryMethod, query_body(), header);
  EXPECT_EQ(again.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(again.error_message(), HasSubstr("replay"));
}

TEST_F(Orchestrator, AClockFarOffIsRefused) {
  OrchestratorLinkOptions options = link_options();
  options.signer =
      std::make_shared<RequestSigner>(miner_key, [] { return unix_now_ms() - 11 * 60 * 1000; });
  const Status status = linked(options)->query("status", "").status();
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr("clocks"));
}

TEST_F(Orchestrator, TooManyPendingCallsAreRefused) {
  server = *OrchestratorServer::start(
      OrchestratorServerOptions{
          .listen = kLoopback, .key = server_key, .run_id = kRun, .max_pending_calls = 1},
      &handler, nullptr);
  Answer<SteeredOrchestrator::JsonDone> pending;
  handler.asked = [&](const ports::Caller&, std::string, std::string, auto done) {
    pending.callback()(std::move(done));
  };
  const auto first = linked(link_options());
  auto answer = std::async(std::launch::async, [&] { return first->query("status", ""); });
  const auto done = pending.get();
  EXPECT_TRUE(absl::IsResourceExhausted(linked(link_options())->hello().status()));
  done(std::string("{}"));
  EXPECT_EQ(*answer.get(), "{}");
}

}  // namespace
}  // namespace tessera::net
