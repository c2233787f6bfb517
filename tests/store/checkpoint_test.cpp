#include "tessera/store/checkpoint.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>

#include "store/checkpoint_fixture.h"
#include "tessera/store/safetensors.h"

namespace tessera::store {
namespace {

TEST(CheckpointTest, ReadsWhatItWrote) {
  const TemporaryFolder folder;
  const std::string root = folder / "run/checkpoint";
  const ports::Checkpoint checkpoint = make_checkpoint(1234);
  const std::string where = must_write(root, checkpoint);
  EXPECT_EQ(where, root + "/step-000000001234");
  EXPECT_EQ(content_of(root + "/latest"), "step-000000001234\n");
  EXPECT_EQ(latest_checkpoint(root).value(), where);
  for (const std::string& path : {root, where}) {
    const StatusOr<ports::Checkpoint> read = read_checkpoint(path);
    ASSERT_TRUE(read.ok()) << read.status();
    expect_equal(*read, checkpoint);
  }
  EXPECT_THAT(names_in(where),
              UnorderedElementsAre("run.json", "stage-0.safetensors", "stage-0.outer.safetensors",
                                   "stage-1.safetensors", "stage-1.outer.safetensors",
                                   "stage-0.miner-" + node(1, 1).hex() + ".safetensors",
                                   "stage-0.miner-" + node(1, 2).hex() + ".safetensors",
                                   "stage-1.miner-09000000.safetensors"));
}

TEST(CheckpointTest, OtherToolsFindTheirWay) {
  const TemporaryFolder folder;
  const ports::Checkpoint checkpoint = make_checkpoint(8);
  const std::string where = must_write(folder.path(), checkpoint);
  const auto json = nlohmann::json::parse(content_of(where + "/run.json"));
  EXPECT_EQ(json["format"], "tessera-checkpoint");
  EXPECT_EQ(json["done"], 8);
  EXPECT_EQ(json["run_spec"]["model"]["width"], 16);
  EXPECT_EQ(json["run_spec_bytes"], to_hex(encode(checkpoint.spec)));
  EXPECT_EQ(json["data_plan"]["tokenizer"], "bytes");
  EXPECT_EQ(json["stages"][1]["weights"]["file"], "stage-1.safetensors");
  EXPECT_EQ(json["stages"][1]["weights"]["blake2b"],
            digest_of(content_of(where + "/stage-1.safetensors")).hex());

  const auto stage = read_safetensors(where + "/stage-0.safetensors");
  ASSERT_TRUE(stage.ok()) << stage.status();
  const SafeTensor* table = (*stage)->find("model.embed_tokens.weight");
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->shape, (std::vector<int64_t>{31, 16}));
  const auto miner = read_safetensors(where + "/stage-1.miner-09000000.safetensors");
  ASSERT_TRUE(miner.ok()) << miner.status();
  EXPECT_NE((*miner)->find("gradient.lm_head.weight"), nullptr);
  EXPECT_EQ((*miner)->metadata.at("optimizer_steps"), "92");
}

TEST(CheckpointTest, WeightsAloneNeedNoOtherFile) {
  const TemporaryFolder folder;
  const ports::Checkpoint checkpoint = make_checkpoint(8);
  const std::string where = must_write(folder.path(), checkpoint);
  for (const std::string& name : names_in(where)) {
    if (name.find(".outer.") != std::string::npos || name.find(".miner-") != std::string::npos) {
      fs::remove(where + "/" + name);
    }
  }
  const StatusOr<ports::Checkpoint> read = read_checkpoint_weights(folder.path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->stages[1].weights, checkpoint.stages[1].weights);
  EXPECT_TRUE(read->stages[1].base.empty());
  EXPECT_TRUE(read->miners.empty());
  expect_error(folder.path(), StatusCode::kNotFound, "stage-0.outer.safetensors: missing");
}

TEST(CheckpointTest, WritesNothingThatContradictsItself) {
  const TemporaryFolder folder;
  const std::string root = folder / "checkpoint";
  const auto refused = [&](const auto& change, const std::string& part) {
    ports::Checkpoint checkpoint = make_checkpoint(8);
    change(checkpoint);
    const Status status = CheckpointFolder(root).write(checkpoint).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(message_of(status), HasSubstr(part));
    EXPECT_FALSE(file_exists(root + "/latest"));
  };
  refused([](auto& c) { c.run_id = "short"; }, "run id of 5 bytes");
  refused([](auto& c) { c.stages.pop_back(); }, "1 stages");
  refused([](auto& c) { c.stages[1].weights.pop_back(); }, "stage 1: weights");
  refused([](auto& c) { c.stages[1].momentum.clear(); }, "stage 1: momentum of 0");
  refused([](auto& c) { c.miners[0].stage = 2; }, "of stage 2");
  refused([](auto& c) { c.miners[1].node = c.miners[0].node; }, "there twice");
  refused([](auto& c) { c.miners[0].state.gradient_microbatches = 1; }, "gradient of 0");
  refused([](auto& c) { c.miners[2].state.residual = {1.0f}; }, "residual of 1");
  refused([](auto& c) { c.miners[2].state.first_moment.clear(); }, "first moment of 0");
  refused([](auto& c) { c.spec.pipeline.stage_layers.clear(); }, "derived values");
  refused([](auto& c) { c.open[0].microbatch = 10; }, "not below next_microbatch");
}

TEST(CheckpointTest, KeepsTheNewest) {
  const TemporaryFolder folder;
  for (uint64_t done : {10, 20, 30}) {
    const std::string where = must_write(folder.path(), make_checkpoint(done));
    // Files that are written within one tick of the file system's clock would tie.
    fs::last_write_time(where + "/run.json", fs::file_time_type(std::chrono::seconds(done)));
  }
  EXPECT_THAT(names_in(folder.path()),
              UnorderedElementsAre(".lock", "latest", "step-000000000020", "step-000000000030"));
  // Another run's checkpoint is never removed, nor is what is no checkpoint.
  ports::Checkpoint foreign = make_checkpoint(5);
  foreign.run_id = std::string(16, 'x');
  must_write(folder.path(), foreign);
  fs::create_directory(folder / "step-000000000001");
  // A run that was resumed from an old checkpoint counts up again: the count is not what is new.
  const std::string resumed = must_write(folder.path(), make_checkpoint(15));
  EXPECT_THAT(names_in(folder.path()),
              UnorderedElementsAre(".lock", "latest", "step-000000000001", "step-000000000005",
                                   "step-000000000015", "step-000000000030"));
  EXPECT_EQ(latest_checkpoint(folder.path()).value(), resumed);
}

TEST(CheckpointTest, TheSameCountAgainGetsANewFolder) {
  const TemporaryFolder folder;
  must_write(folder.path(), make_checkpoint(10, 1));
  const ports::Checkpoint second = make_checkpoint(10, 2);
  EXPECT_EQ(must_write(folder.path(), second), folder / "step-000000000010-2");
  const StatusOr<ports::Checkpoint> read = read_checkpoint(folder.path());
  ASSERT_TRUE(read.ok()) << read.status();
  expect_equal(*read, second);
  EXPECT_TRUE(read_checkpoint(folder / "step-000000000010").ok());
}

TEST(CheckpointTest, LeftoversOfACrashAreIgnoredAndRemoved) {
  const TemporaryFolder folder;
  const ports::Checkpoint first = make_checkpoint(10);
  const std::string where = must_write(folder.path(), first);
  // Killed while writing the folder, and while replacing `latest`.
  fs::copy(where, folder / ".tmp-step-000000000020");
  fs::remove(folder / ".tmp-step-000000000020/run.json");
  overwrite(folder / "latest.tmp-abc123", "step-0000");
  // Killed between the rename and `latest`.
  fs::copy(where, folder / "step-000000000030");

  EXPECT_EQ(latest_checkpoint(folder.path()).value(), where);
  expect_equal(read_checkpoint(folder.path()).value(), first);
  EXPECT_EQ(must_write(folder.path(), make_checkpoint(30)), folder / "step-000000000030-2");
  for (const std::string& name : names_in(folder.path())) {
    EXPECT_THAT(name, testing::Not(HasSubstr("tmp-")));
  }
}

// A writer is killed as soon as what it makes on its way appears.
TEST(CheckpointTest, AKillAtAnyMomentLeavesAWholeCheckpoint) {
  const TemporaryFolder folder;
  must_write(folder.path(), make_checkpoint(1, 1));
  const char* const appears[] = {".tmp-step-{:012}", ".tmp-step-{:012}/stage-0.safetensors",
                                 ".tmp-step-{:012}/stage-1.outer.safetensors",
                                 ".tmp-step-{:012}/run.json", "step-{:012}"};
  uint64_t done = 1;
  for (const char* const moment : appears) {
    const uint64_t next = done + 1;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::_exit(CheckpointFolder(folder.path()).write(make_checkpoint(next, next)).ok() ? 0 : 1);
    }
    const std::string path = folder / fmt::format(fmt::runtime(moment), next);
    int state = 0;
    pid_t ended = 0;
    while (ended == 0 && !file_exists(path)) ended = ::waitpid(child, &state, WNOHANG);
    if (ended == 0) {
      ::kill(child, SIGKILL);
      ASSERT_EQ(::waitpid(child, &state, 0), child);
    }
    ASSERT_TRUE(WIFSIGNALED(state) || WEXITSTATUS(state) == 0) << state;
    const StatusOr<ports::Checkpoint> read = read_checkpoint(folder.path());
    ASSERT_TRUE(read.ok()) << moment << ": " << read.status();
    EXPECT_THAT(read->done, testing::AnyOf(done, next));
    expect_equal(*read, make_checkpoint(read->done, read->done));
    done = next;
    must_write(folder.path(), make_checkpoint(done, done));
  }
}

TEST(CheckpointTest, OneWriterAtATime) {
  const TemporaryFolder folder;
  must_write(folder.path(), make_checkpoint(1));
  // Held as another orchestrator would hold it.
  const int lock = ::open((folder / ".lock").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(::flock(lock, LOCK_EX | LOCK_NB), 0);
  const Status status = CheckpointFolder(folder.path()).write(make_checkpoint(2)).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(message_of(status), HasSubstr("another program writes checkpoints here"));
  ::close(lock);
  EXPECT_TRUE(CheckpointFolder(folder.path()).write(make_checkpoint(2)).ok());
}

}  // namespace
}  // namespace tessera::store
