// Servers that are not what they say: the links must notice.
#include <gmock/gmock.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <tessera/v1/orchestrator.grpc.pb.h>

#include "net/net_fixture.h"
#include "net/wire.h"

namespace tessera::net {
namespace {

using ::testing::HasSubstr;

class FakeOrchestrator : public v1::Orchestrator::CallbackService {
 public:
  std::function<void(const v1::HelloRequest&, v1::HelloAnswer*)> greet;
  grpc::ServerUnaryReactor* Hello(grpc::CallbackServerContext* context,
                                  const v1::HelloRequest* request,
                                  v1::HelloAnswer* answer) override {
    greet(*request, answer);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerUnaryReactor* Query(grpc::CallbackServerContext* context, const v1::QueryRequest*,
                                  v1::QueryAnswer* answer) override {
    answer->set_json("{}");
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

struct Impostor : testing::Test {
  FakeOrchestrator orchestrator;
  KeyPair honest_key = key_of('h');
  std::shared_ptr<RequestSigner> signer = std::make_shared<RequestSigner>(key_of('m'));
  int port = 0;
  std::unique_ptr<grpc::Server> server = started();

  std::unique_ptr<grpc::Server> started() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(kLoopback, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&orchestrator);
    return builder.BuildAndStart();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port); }
  std::unique_ptr<GrpcOrchestratorLink> linked() const {
    OrchestratorLinkOptions options;
    options.orchestrator = address();
    options.signer = signer;
    options.software = "client 1";
    return *GrpcOrchestratorLink::create(options);
  }
  static void sign(const KeyPair& key, const v1::HelloRequest& request, v1::HelloAnswer* answer) {
    const Signature signature =
        key.sign(hello_bytes(request.nonce(), core::kProtocolVersion, kRun, key_of('h').id()));
    answer->set_protocol_version(core::kProtocolVersion);
    answer->set_run_id(kRun);
    answer->set_node(std::string(key_of('h').id().view()));
    answer->set_signature(signature.data(), signature.size());
  }
};

TEST_F(Impostor, WithoutTheKeyOfTheIdItTells) {
  orchestrator.greet = [](const v1::HelloRequest& request, v1::HelloAnswer* answer) {
    sign(key_of('i'), request, answer);
  };
  const Status status = linked()->hello().status();
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr("has not its key"));
}

TEST_F(Impostor, RepeatingAnOldGreeting) {
  v1::HelloAnswer recorded;
  orchestrator.greet = [&](const v1::HelloRequest& request, v1::HelloAnswer* answer) {
    sign(honest_key, request, answer);
    recorded = *answer;
  };
  EXPECT_TRUE(linked()->hello().ok());
  orchestrator.greet = [&](const v1::HelloRequest&, v1::HelloAnswer* answer) {
    *answer = recorded;
  };
  EXPECT_TRUE(absl::IsUnauthenticated(linked()->hello().status()));
}

TEST_F(Impostor, AnsweringAfterTheTrueGreeting) {
  orchestrator.greet = [&](const v1::HelloRequest& request, v1::HelloAnswer* answer) {
    sign(honest_key, request, answer);
  };
  const Status status = linked()->query("status", "").status();
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr("not signed"));
}

TEST_F(Impostor, MalformedGreetingsAreRefused) {
  orchestrator.greet = [&](const v1::HelloRequest& request, v1::HelloAnswer* answer) {
    sign(honest_key, request, answer);
    answer->set_node("short");
  };
  const Status status = linked()->hello().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(message_of(status), HasSubstr("node: 5 bytes"));
}

TEST_F(Impostor, AnotherProtocolVersionIsARefusalNamingWhatToUpgrade) {
  orchestrator.greet = [](const v1::HelloRequest&, v1::HelloAnswer* answer) {
    answer->set_protocol_version(core::kProtocolVersion + 1);
    answer->set_software("server 2");
  };
  Answer<StatusOr<core::RegisterAnswer>> answer;
  const auto link = linked();
  link->register_miner({}, answer.callback());
  const auto refusal = answer.get();
  ASSERT_TRUE(refusal.ok()) << refusal.status();
  EXPECT_EQ(refusal->refusal, core::RegisterRefusal::kProtocolVersion);
  EXPECT_THAT(refusal->message, AllOf(HasSubstr("client 1"), HasSubstr("server 2"),
                                      HasSubstr("upgrade this program")));
}

}  // namespace
}  // namespace tessera::net
