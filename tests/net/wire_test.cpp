#include "net/wire.h"

#include <gmock/gmock.h>
#include <grpc/support/log.h>
#include <spdlog/sinks/ostream_sink.h>
#include <tessera/v1/orchestrator.pb.h>
#include <tessera/v1/peer.pb.h>

#include <sstream>

#include "net/net_fixture.h"
#include "tessera/base/log.h"
#include "tessera/net/grpc_setup.h"

namespace tessera::net {
namespace {

using ::testing::HasSubstr;

TEST(Wire, DigestOfABufferIsThatOfItsBytes) {
  const std::string bytes(1000, 'f');
  EXPECT_EQ(digest_of_buffer(buffer_of(bytes)), digest_of(bytes));
}

TEST(Wire, RefusesOtherBytes) {
  v1::HelloRequest message;
  const Status status = parse(buffer_of("\xff\xff\xff"), &message);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(message_of(status), HasSubstr("tessera.v1.HelloRequest"));
}

TEST(Wire, ReadsAddresses) {
  EXPECT_EQ(parse_address("example.org:7700")->text(), "example.org:7700");
  EXPECT_EQ(parse_address("[::1]:0")->text(), "[::1]:0");
  EXPECT_EQ(parse_address("[::1]:0")->host, "::1");
  for (const char* wrong : {"", "host", ":1", "host:", "host:65536", "host:-1", "host:1x", "::1:5",
                            "unix:/tmp/x:1", "[]:1", "a b:1", "x%y:2"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(parse_address(wrong).status())) << wrong;
  }
}

TEST(Wire, VersionMismatchNamesWhatToUpgrade) {
  EXPECT_EQ(version_mismatch("A", 1, "B", 2), "A speaks protocol version 1, B speaks 2; upgrade A");
  EXPECT_EQ(version_mismatch("A", 3, "B", 2), "A speaks protocol version 3, B speaks 2; upgrade B");
}

TEST(GrpcLogging, GoesToTheLogAtDebugLevel) {
  std::ostringstream text;
  const auto before = spdlog::default_logger();
  auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text));
  logger->set_level(spdlog::level::debug);
  spdlog::set_default_logger(logger);
  prepare_grpc();
  gpr_log(GPR_ERROR, "a line of gRPC");
  spdlog::set_default_logger(before);
  gpr_set_log_function(nullptr);  // the default
  EXPECT_THAT(text.str(), AllOf(HasSubstr("[debug] grpc: "), HasSubstr("a line of gRPC")));
}

}  // namespace
}  // namespace tessera::net
