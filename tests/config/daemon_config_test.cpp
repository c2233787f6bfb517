#include "tessera/config/daemon_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/config_files.h"

namespace tessera::config {
namespace {

using testing::HasSubstr;

const std::string kKey(64, 'a');

TEST(OrchestratorConfig, ReadsEveryKey) {
  const auto config = load_orchestrator_config(write_config(R"(
listen: "[::]:7700"
directory: out/o
run_config: configs/r.yaml
key_file: secret.key
blob_limit_bytes: 2GiB
admins: [)" + kKey + R"(]
log: {level: debug, file: o.log}
)"),
                                               {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->listen, "[::]:7700");
  EXPECT_EQ(config->directory, "out/o");
  EXPECT_EQ(config->run_config, "configs/r.yaml");
  EXPECT_EQ(config->key_file, "secret.key");
  EXPECT_EQ(config->blob_limit_bytes, uint64_t{2} << 30);
  ASSERT_EQ(config->admins.size(), 1u);
  EXPECT_EQ(config->admins[0].hex(), kKey);
  EXPECT_EQ(config->log.level, "debug");
  EXPECT_EQ(config->log.file, "o.log");
}

TEST(OrchestratorConfig, TheKeyLiesInTheDirectory) {
  const auto config = load_orchestrator_config("", {"run_config=r.yaml", "directory=d"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->key_file, "d/orchestrator.key");
  EXPECT_EQ(config->listen, "127.0.0.1:0");
  EXPECT_TRUE(config->admins.empty());
}

TEST(MinerConfig, ReadsEveryKey) {
  const auto config = load_miner_config(write_config(R"(
orchestrator: example.org:7700
listen: 0.0.0.0:7701
advertise: 192.0.2.2:0
directory: out/m
device: cuda:3
threads: 8
memory_bytes: 10GB
wanted_stage: 2
log:
  level: warn
)"),
                                        {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->orchestrator, "example.org:7700");
  EXPECT_EQ(config->listen, "0.0.0.0:7701");
  EXPECT_EQ(config->advertise, "192.0.2.2:0");
  EXPECT_EQ(config->key_file, "out/m/miner.key");
  EXPECT_EQ(config->device, (Device{Device::Kind::kCuda, 3}));
  EXPECT_EQ(config->threads, 8u);
  EXPECT_EQ(config->memory_bytes, 10000000000u);
  EXPECT_EQ(config->wanted_stage, 2u);
  EXPECT_EQ(config->log.level, "warn");
}

TEST(MinerConfig, Defaults) {
  const auto config = load_miner_config("", {"orchestrator=localhost:1"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->device, Device{});
  EXPECT_EQ(config->reduce_device, MinerConfig::ReduceDevice::kAuto);
  EXPECT_EQ(config->threads, 0u);
  EXPECT_EQ(config->memory_bytes, 0u);
  EXPECT_FALSE(config->wanted_stage.has_value());
  EXPECT_EQ(config->advertise, "");
}

TEST(MinerConfig, SeveralGpus) {
  const auto config =
      load_miner_config("", {"orchestrator=localhost:1", "gpus=[0, 2, 3]", "zero_stage=3"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->gpus, (std::vector<uint32_t>{0, 2, 3}));
  EXPECT_EQ(config->zero_stage, 3u);
  EXPECT_TRUE(load_miner_config("", {"orchestrator=a:1", "gpus=[0, 1]", "device=cpu"}).ok());
  EXPECT_TRUE(load_miner_config("", {"orchestrator=a:1", "gpus=[1]"}).ok());
}

TEST(MinerConfig, AnyAndAutoTakeBackWhatTheFileSays) {
  const std::string path =
      write_config("orchestrator: a:1\nwanted_stage: 1\nadvertise: b:2\ndevice: cpu\n");
  const auto config = load_miner_config(path, {"wanted_stage=any", "advertise=''", "device=auto"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->wanted_stage.has_value());
  EXPECT_EQ(config->advertise, "");
  EXPECT_EQ(config->device, Device{});
}

TEST(Device, Names) {
  EXPECT_EQ(name_of(Device{}), "auto");
  EXPECT_EQ(name_of(Device{Device::Kind::kCpu, {}}), "cpu");
  EXPECT_EQ(name_of(Device{Device::Kind::kCuda, {}}), "cuda");
  EXPECT_EQ(name_of(Device{Device::Kind::kCuda, 7}), "cuda:7");
}

struct Refusal {
  std::string content;
  std::string message;
};

const std::string kAddress =
    "expected an address host:port (an IPv6 address in brackets, port at most 65535), got ";
const Refusal kMinerRefusals[] = {
    {"listen: 127.0.0.1:0\n",
     "c.yaml: orchestrator (default \"\"): required; give the address host:port of the run's "
     "orchestrator"},
    {"orchestrator: example.org\n", "c.yaml:1: orchestrator: " + kAddress + "'example.org'"},
    {"orchestrator: example.org:65536\n",
     "c.yaml:1: orchestrator: " + kAddress + "'example.org:65536'"},
    {"orchestrator: 'example.org: 1'\n",
     "c.yaml:1: orchestrator: " + kAddress + "'example.org: 1'"},
    {"orchestrator: '2001:db8::1:7700'\n",
     "c.yaml:1: orchestrator: " + kAddress + "'2001:db8::1:7700'"},
    {"orchestrator: ':7700'\n", "c.yaml:1: orchestrator: " + kAddress + "':7700'"},
    {"orchestrator: http://example.org:80\n",
     "c.yaml:1: orchestrator: " + kAddress + "'http://example.org:80'"},
    {"orchestrator: example.org:0\n",
     "c.yaml:1: orchestrator: expected an address host:port with the port to connect to, got "
     "'example.org:0'"},
    {"listen: ''\n", "c.yaml:1: listen: " + kAddress + "''"},
    {"orchestrator: a:1\ndevice: gpu\n",
     "c.yaml:2: device: expected auto, cpu, cuda or cuda:N, got 'gpu'"},
    {"orchestrator: a:1\ndevice: cuda:-1\n",
     "c.yaml:2: device: expected auto, cpu, cuda or cuda:N, got 'cuda:-1'"},
    {"orchestrator: a:1\ngpus: [0, 1, 0]\n", "c.yaml:2: gpus: 0 is named twice"},
    {"orchestrator: a:1\ngpus: [0, 1]\nzero_stage: 4\n",
     "c.yaml:3: zero_stage: 4 is not allowed; it must be 0 to 3"},
    {"orchestrator: a:1\ngpus: [0]\nzero_stage: 1\n",
     "c.yaml:3: zero_stage: 1 shards over several GPUs; name them in 'gpus', or leave zero_stage "
     "out"},
    {"orchestrator: a:1\ngpus: [0, 1]\ndevice: cuda:0\n",
     "c.yaml:2: gpus: device names a GPU too; leave device out"},
    {"orchestrator: a:1\nthreads: 1025\n",
     "c.yaml:2: threads: 1025 is not allowed; it must be 0 to 1024"},
    {"orchestrator: a:1\nmemory_bytes: 10MB\n",
     "c.yaml:2: memory_bytes: 10000000 is not allowed; it must be 0, or 64MiB or more"},
    {"orchestrator: a:1\nmemory_bytes: 10 gigs\n",
     "c.yaml:2: memory_bytes: expected a number of bytes such as 1073741824 or 1GiB, got '10 "
     "gigs'"},
    {"orchestrator: a:1\nmemory_bytes: 99999999TiB\n",
     "c.yaml:2: memory_bytes: 99999999TiB is too large; the largest number here is "
     "18446744073709551615"},
    {"orchestrator: a:1\nwanted_stage: 64\n",
     "c.yaml:2: wanted_stage: 64 is not allowed; it must be any, or 0 to 63"},
    {"orchestrator: a:1\nwanted_stage: last\n",
     "c.yaml:2: wanted_stage: expected a whole number or 'any', got 'last'"},
    {"orchestrator: a:1\nreduce_device: cuda\n",
     "c.yaml:2: reduce_device: expected one of auto, cpu, gpu, got 'cuda'"},
    {"orchestrator: a:1\ndirectory: ''\n",
     "c.yaml:2: directory: empty; name a folder, it is made if absent"},
    {"orchestrator: a:1\nlog:\n  level: loud\n",
     "c.yaml:3: log.level: expected one of trace, debug, info, warn, error, got 'loud'"},
    {"orchestrater: a:1\n", "c.yaml:1: orchestrater: unknown key; did you mean 'orchestrator'?"},
    {"lgo:\n  level: info\n", "c.yaml:1: lgo: unknown key; did you mean 'log'?"},
    {"run_config: x\n",
     "c.yaml:1: run_config: unknown key; the keys here are: orchestrator, listen, advertise, "
     "directory, "
     "key_file, device, reduce_device, gpus, zero_stage, threads, compute, memory_bytes, wanted_stage, log"},
};
TEST(MinerConfig, RefusalsSayWhereAndWhat) {
  for (const Refusal& refusal : kMinerRefusals) {
    const auto config = load_miner_config(write_config(refusal.content), {});
    EXPECT_EQ(message_of_result(config), refusal.message) << refusal.content;
  }
}

const Refusal kOrchestratorRefusals[] = {
    {"run_config: r\nblob_limit_bytes: 1MiB\n",
     "c.yaml:2: blob_limit_bytes: 1048576 is not allowed; it must be 16MiB or more"},
    {"run_config: r\nadmins: [abc]\n",
     "c.yaml:2: admins: item 1: expected a public key of 64 hexadecimal digits, got 'abc'"},
    {"run_config: r\nadmins: " + kKey + "\n",
     "c.yaml:2: admins: expected a list of public keys, got '" + std::string(60, 'a') + "...'"},
};
TEST(OrchestratorConfig, RefusalsSayWhereAndWhat) {
  for (const Refusal& refusal : kOrchestratorRefusals) {
    const auto config = load_orchestrator_config(write_config(refusal.content), {});
    EXPECT_EQ(message_of_result(config), refusal.message) << refusal.content;
  }
}

TEST(DaemonOverrides, AreRefusedInTheSameWay) {
  EXPECT_EQ(message_of_result(load_miner_config("", {"orchestrator=a:1", "thread=3"})),
            "--set thread=3: unknown key; did you mean threads?");
  EXPECT_EQ(message_of_result(load_miner_config("", {"orchestrator=a:1", "log.levle=info"})),
            "--set log.levle=info: unknown key; did you mean log.level?");
  EXPECT_EQ(message_of_result(load_miner_config("", {})),
            "orchestrator (default \"\"): required; give the address host:port of the run's "
            "orchestrator");
}

TEST(DaemonReference, HasTheDefaults) {
  EXPECT_THAT(orchestrator_config_reference_markdown(),
              HasSubstr("| `blob_limit_bytes` | a number of bytes such "
                        "as 1073741824 or 1GiB | `64GiB` |"));
  EXPECT_THAT(orchestrator_config_reference_markdown(), HasSubstr("\n### log\n"));
  EXPECT_THAT(miner_config_reference_markdown(),
              HasSubstr("| `wanted_stage` | a whole number or 'any' | `any` |"));
}

}  // namespace
}  // namespace tessera::config
