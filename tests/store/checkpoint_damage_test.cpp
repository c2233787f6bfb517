// What read_checkpoint does with files that are damaged, forged or gone.
#include <sys/stat.h>

#include "store/checkpoint_fixture.h"

namespace tessera::store {
namespace {

// run.json with `from` replaced, and the digest in its last line made right again.
void forge_run_file(const std::string& folder, const std::string& from, const std::string& to) {
  const std::string path = folder + "/run.json";
  std::string text = content_of(path);
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  const size_t name = text.rfind("\"blake2b\": \"");
  const std::string body = text.substr(0, name);
  overwrite(path, body + "\"blake2b\": \"" + digest_of(body).hex() + "\"\n}\n");
}

// Every file, damaged in every way, is refused with its name and a way out.
TEST(CheckpointDamageTest, RefusesDamagedFiles) {
  const TemporaryFolder folder;
  const std::string where = must_write(folder.path(), make_checkpoint(8));
  for (const std::string& name : names_in(where)) {
    const std::string path = where + "/" + name;
    const std::string whole = content_of(path);
    const std::string mend = "use another checkpoint";
    for (const size_t at : {size_t{0}, whole.size() / 2, whole.size() - 1}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
      overwrite(path, damaged);
      const Status status = read_checkpoint(where).status();
      EXPECT_EQ(status.code(), StatusCode::kDataLoss) << name << " byte " << at << ": " << status;
      EXPECT_THAT(message_of(status), AllOf(HasSubstr(path), HasSubstr(mend)));
    }
    for (const std::string& other :
         {whole.substr(0, whole.size() - 1), whole + " ", std::string()}) {
      overwrite(path, other);
      expect_error(where, StatusCode::kDataLoss, path);
    }
    fs::remove(path);
    EXPECT_EQ(read_checkpoint(where).status().code(), StatusCode::kNotFound) << name;
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);  // must not wait for a writer
    EXPECT_EQ(read_checkpoint(where).status().code(), StatusCode::kDataLoss) << name;
    fs::remove(path);
    overwrite(path, whole);
  }
  EXPECT_TRUE(read_checkpoint(where).ok());
}

// With right digests, as somebody who means harm would write it.
TEST(CheckpointDamageTest, RefusesForgedManifests) {
  const TemporaryFolder folder;
  const ports::Checkpoint checkpoint = make_checkpoint(8);
  const std::string where = must_write(folder.path(), checkpoint);
  const std::string run_file = content_of(where + "/run.json");
  core::RunSpec huge = checkpoint.spec;
  huge.model.width = 65536;
  core::RunSpec broken = checkpoint.spec;
  broken.model.heads = 0;
  const std::string spec = to_hex(encode(checkpoint.spec));
  const std::string first = where + "/stage-0.safetensors";
  const std::string bytes = fmt::format("\"bytes\": {}", fs::file_size(first));
  const struct {
    std::string from, to, part;
  } cases[] = {
      {"\"stage-0.safetensors\"", "\"../../secret\"", "another file where stage-0.safetensors"},
      {"\"stage-0.outer.safetensors\"", "\"stage-0.safetensors\"", "another file"},
      {"tessera-checkpoint", "tessera-picture", "is not a tessera-checkpoint"},
      {"\"done\": 8", "\"done\": 80", "80 microbatches are done"},
      {"\"done\": 8", "\"done\": -8", "needs a whole number \"done\""},
      {"\"open\": [", "\"open\": 1, \"x\": [", "needs a list \"open\""},
      {"\"counted_stages\": 2", "\"counted_stages\": 4", "counted by stages"},
      {"\"microbatch\": 9", "\"microbatch\": 8", "there twice"},
      {"\"stage\": 1", "\"stage\": 2", "miner"},
      {"\"stage\": 1", "\"stage\": 4294967296", "of 32 bits"},
      {node(9, 3).hex(), node(1, 1).hex(), "another file"},
      {node(9, 3).hex(), "09", "64 hexadecimal digits"},
      {spec, spec.substr(2), "no run specification"},
      {spec, to_hex(encode(broken)), "run specification: model.heads"},
      {spec, to_hex(encode(huge)), "tensor"},
      {bytes, "\"bytes\": 99999999999999", "99999999999999"},
  };
  for (const auto& item : cases) {
    forge_run_file(where, item.from, item.to);
    expect_error(where, StatusCode::kDataLoss, item.part);
    overwrite(where + "/run.json", run_file);
  }
  forge_run_file(where, "\"version\": 1", "\"version\": 2");
  expect_error(where, StatusCode::kFailedPrecondition, "version 2 of the format");
}

TEST(CheckpointDamageTest, RefusesTensorsOfAnotherModel) {
  const TemporaryFolder folder;
  const std::string where = must_write(folder.path(), make_checkpoint(8));
  ports::Checkpoint other = make_checkpoint(8);
  other.spec.model.ffn_width = 25;
  other.miners.clear();
  for (StageIndex stage = 0; stage < 2; ++stage) {
    const uint64_t count = core::stage_value_count(other.spec, stage);
    other.stages[stage].weights = other.stages[stage].base = other.stages[stage].momentum =
        values(count, 1);
  }
  const std::string elsewhere = must_write(folder / "other", other);
  const std::string name = "/stage-1.safetensors";
  const std::string old_bytes = content_of(where + name), new_bytes = content_of(elsewhere + name);
  overwrite(where + name, new_bytes);
  const auto entry = [](const std::string& bytes) {
    return fmt::format("\"bytes\": {},\n    \"blake2b\": \"{}\"", bytes.size(),
                       digest_of(bytes).hex());
  };
  forge_run_file(where, entry(old_bytes), entry(new_bytes));
  expect_error(where, StatusCode::kDataLoss,
               "tensor 'model.layers.1.mlp.gate_proj.weight' has another shape");
}

TEST(CheckpointDamageTest, SaysWhatIsThereInstead) {
  const TemporaryFolder folder;
  expect_error(folder / "none", StatusCode::kNotFound, "no such folder");
  expect_error(folder.path(), StatusCode::kNotFound, "it holds no step folder");
  EXPECT_EQ(latest_checkpoint(folder.path()).status().code(), StatusCode::kNotFound);
  must_write(folder / "checkpoint", make_checkpoint(3));
  expect_error(folder.path(), StatusCode::kNotFound, "there is one in " + (folder / "checkpoint"));
  const std::string root = folder / "checkpoint";
  overwrite(root + "/latest", "step-000000000004\n");
  expect_error(root, StatusCode::kNotFound, "it holds step-000000000003");
  for (const std::string name :
       {"", "../../etc", "step-3", "step-000000000003-1", "step-000000000003/.."}) {
    overwrite(root + "/latest", name + "\n");
    expect_error(root, StatusCode::kDataLoss, "does not name a step folder");
  }
}

}  // namespace
}  // namespace tessera::store
