#include "tessera/store/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "tessera/base/bytes.h"
#include "tessera/base/files.h"

namespace tessera::store {
namespace {

using test::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;

// A file of this header and `data_bytes` zeros.
std::string file_of(const std::string& json, size_t data_bytes) {
  ByteWriter writer;
  writer.number(static_cast<uint64_t>(json.size()));
  writer.raw(json.data(), json.size());
  return writer.take() + std::string(data_bytes, '\0');
}

std::string entry_of(const std::string& name, const std::string& dtype, const std::string& shape,
                     const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

Status parse_status(std::string bytes) {
  return parse_safetensors(std::move(bytes), "the test").status();
}

TEST(SafetensorsTest, WritesTheKnownForm) {
  const std::string small(4, '\x01');
  const std::string large(16, '\x02');
  const StatusOr<std::string> bytes =
      encode_safetensors({{"b", "BF16", {2}, small}, {"a", "F64", {1, 2}, large}}, {{"run", "r1"}});
  ASSERT_TRUE(bytes.ok());
  const std::string json =
      R"({"__metadata__":{"run":"r1"},"a":{"data_offsets":[0,16],"dtype":"F64","shape":[1,2]},)"
      R"("b":{"data_offsets":[16,20],"dtype":"BF16","shape":[2]}})";
  const std::string padded = json + std::string((8 - json.size() % 8) % 8, ' ');
  ByteWriter expected;
  expected.number(static_cast<uint64_t>(padded.size()));
  EXPECT_EQ(*bytes, expected.take() + padded + large + small);
  EXPECT_EQ((bytes->size() - 20) % 8, 0u);
}

TEST(SafetensorsTest, ReadsWhatItWrote) {
  const TemporaryFolder folder;
  const std::string path = folder / "stage.safetensors";
  const std::string weights(24, 'w');
  const std::string step(8, 's');
  const std::string mask(3, 'm');
  const std::vector<SafeTensor> tensors = {{"weights/ü\"", "F32", {2, 3}, weights},
                                           {"step", "I64", {}, step},
                                           {"mask", "BOOL", {3, 1, 1}, mask},
                                           {"empty", "F16", {4, 0}, ""}};
  ASSERT_TRUE(write_safetensors(path, tensors, {{"epoch", "7"}, {"", ""}}).ok());
  EXPECT_EQ(*read_file(path), *encode_safetensors(tensors, {{"epoch", "7"}, {"", ""}}));

  const StatusOr<std::unique_ptr<SafetensorsFile>> file = read_safetensors(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata, (std::map<std::string, std::string>{{"epoch", "7"}, {"", ""}}));
  EXPECT_EQ((*file)->tensors.size(), 4u);
  for (const SafeTensor& expected : tensors) {
    const SafeTensor* found = (*file)->find(expected.name);
    ASSERT_NE(found, nullptr) << expected.name;
    EXPECT_EQ(found->dtype, expected.dtype);
    EXPECT_EQ(found->shape, expected.shape);
    EXPECT_EQ(found->data, expected.data);
  }
  EXPECT_EQ((*file)->find("absent"), nullptr);
  const auto* start = (*file)->bytes.data();
  EXPECT_EQ(((*file)->find("step")->data.data() - start) % 8, 0);
  EXPECT_EQ(((*file)->find("weights/ü\"")->data.data() - start) % 4, 0);
}

TEST(SafetensorsTest, NoTensorsAtAll) {
  const StatusOr<std::unique_ptr<SafetensorsFile>> file =
      parse_safetensors(*encode_safetensors({}, {}), "the test");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->tensors.empty());
}

TEST(SafetensorsTest, WriterRefuses) {
  const std::string four(4, 'x');
  const auto refused = [](const std::vector<SafeTensor>& tensors,
                          std::map<std::string, std::string> metadata = {}) {
    const Status status = encode_safetensors(tensors, metadata).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return message_of(status);
  };
  EXPECT_THAT(refused({{"a", "F32", {1}, four}, {"a", "U8", {4}, four}}),
              HasSubstr("'a' is there twice"));
  EXPECT_THAT(refused({{"a", "F33", {1}, four}}), HasSubstr("unknown dtype 'F33'"));
  EXPECT_THAT(refused({{"a", "F32", {2}, four}}),
              HasSubstr("4 bytes of data do not have the size of its shape (F32, [2])"));
  EXPECT_THAT(refused({{"a", "U8", {-2, -2}, four}}), HasSubstr("size of its shape"));
  EXPECT_THAT(refused({{"a", "U8", {int64_t{1} << 62, 4}, ""}}), HasSubstr("size of its shape"));
  EXPECT_THAT(refused({{"a", "U8", std::vector<int64_t>(33, 1), "x"}}), HasSubstr("33 dimensions"));
  EXPECT_THAT(refused({{"__metadata__", "F32", {1}, four}}), HasSubstr("can't be named"));
  EXPECT_THAT(refused({{"", "F32", {1}, four}}), HasSubstr("can't be named"));
  EXPECT_THAT(refused({{"\xff", "F32", {1}, four}}), HasSubstr("not UTF-8"));
  EXPECT_THAT(refused({}, {{"key", "\xff"}}), HasSubstr("not UTF-8"));

  const TemporaryFolder folder;
  const Status status = write_safetensors(folder / "x", {{"a", "F32", {2}, four}}, {});
  EXPECT_THAT(message_of(status), HasSubstr(folder / "x"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsTest, ReaderRefusesEveryTruncation) {
  const std::string data(12, 'x');
  const std::string bytes = *encode_safetensors(
      {{"a", "F32", {2}, data.substr(0, 8)}, {"b", "U8", {4}, data.substr(8)}}, {{"run", "r1"}});
  ASSERT_TRUE(parse_status(bytes).ok());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const Status status = parse_status(bytes.substr(0, size));
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << size;
    EXPECT_THAT(message_of(status), testing::StartsWith("the test: "));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(parse_status(bytes + "x")));
}

// Whatever one byte is changed into, parsing ends with a status and tensors stay inside the file.
TEST(SafetensorsTest, ReaderSurvivesEveryChangedByte) {
  const std::string bytes =
      *encode_safetensors({{"a", "F32", {2}, "01234567"}, {"b", "U8", {4}, "0123"}}, {{"k", "v"}});
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(value);
      const StatusOr<std::unique_ptr<SafetensorsFile>> file =
          parse_safetensors(std::move(changed), "the test");
      if (!file.ok()) continue;
      const char* begin = (*file)->bytes.data();
      for (const SafeTensor& tensor : (*file)->tensors) {
        EXPECT_GE(tensor.data.data(), begin);
        EXPECT_LE(tensor.data.data() + tensor.data.size(), begin + (*file)->bytes.size());
      }
    }
  }
}

TEST(SafetensorsTest, ReaderRefusesHostileHeaders) {
  const std::string good = entry_of("a", "U8", "[4]", "[0,4]");
  ASSERT_TRUE(parse_status(file_of("{" + good + "}", 4)).ok());
  const struct {
    std::string json;
    size_t data_bytes;
    const char* message;
  } cases[] = {
      {"", 0, "does not start with '{'"},
      {" {}", 0, "does not start with '{'"},
      {"[]", 0, "does not start with '{'"},
      {"{" + good, 4, "not JSON"},
      {"{" + good + "}x", 4, "not JSON"},
      {"{\"\xff\":1}", 0, "not JSON"},
      {"{" + good + "," + good + "}", 4, "\"a\" is there twice"},
      {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "\"__metadata__\" is there twice"},
      {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "the metadata \"k\" is there twice"},
      {"{\"__metadata__\":{\"k\":1}}", 0, "a number where none belongs"},
      {"{\"__metadata__\":\"text\"}", 0, "a string where none belongs"},
      {"{\"__metadata__\":{\"k\":{}}}", 0, "an object where none belongs"},
      {"{\"a\":[]}", 0, "an array where none belongs"},
      {"{\"a\":{}}", 0, "lacks dtype, shape or data_offsets"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "lacks dtype, shape or data_offsets"},
      {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 4, "has \"dtype\" twice"},
      {"{\"a\":{\"colour\":1}}", 4, "unknown field \"colour\""},
      {"{" + entry_of("a", "U9", "[4]", "[0,4]") + "}", 4, "unknown dtype \"U9\""},
      {"{" + entry_of("a", "U8", "[-4]", "[0,4]") + "}", 4, "a negative number"},
      {"{" + entry_of("a", "U8", "[4.0]", "[0,4]") + "}", 4, "a fraction"},
      {"{" + entry_of("a", "U8", "[1e400]", "[0,4]") + "}", 4, "not JSON"},
      {"{" + entry_of("a", "U8", "[null]", "[0,4]") + "}", 4, "null where none belongs"},
      {"{" + entry_of("a", "U8", "[true]", "[0,4]") + "}", 4, "a truth value"},
      {"{" + entry_of("a", "U8", "[[4]]", "[0,4]") + "}", 4, "an array where none belongs"},
      {"{" + entry_of("a", "U8", "4", "[0,4]") + "}", 4, "a number where none belongs"},
      {"{" + entry_of("a", "U8", "[9223372036854775808]", "[0,4]") + "}", 4, "one over 2^63 - 1"},
      {"{" + entry_of("a", "U8", "[4294967296,4294967296,4]", "[0,4]") + "}", 4,
       "not the size of its shape"},
      {"{" + entry_of("a", "F64", "[2305843009213693952]", "[0,0]") + "}", 0,
       "not the size of its shape"},
      {"{" + entry_of("a", "U8", "[4]", "[0]") + "}", 4, "exactly two data_offsets"},
      {"{" + entry_of("a", "U8", "[4]", "[0,4,4]") + "}", 4, "exactly two data_offsets"},
      {"{" + entry_of("a", "U8", "[4]", "[4,0]") + "}", 4, "gap or overlap"},
      {"{" + entry_of("a", "U8", "[3]", "[1,4]") + "}", 4, "gap or overlap"},
      {"{" + entry_of("a", "U8", "[3]", "[0,3]") + "}", 4, "truncated, or followed by more"},
      {"{" + entry_of("a", "U8", "[5]", "[0,5]") + "}", 4, "truncated, or followed by more"},
      {"{" + entry_of("a", "U8", "[4]", "[0,18446744073709551615]") + "}", 4,
       "not the size of its shape"},
      {"{" + good + "," + entry_of("b", "U8", "[2]", "[2,4]") + "}", 4, "gap or overlap"},
      {"{" + good + "," + entry_of("b", "U8", "[2]", "[5,7]") + "}", 7, "gap or overlap"},
      {"{" + good + "," + entry_of("b", "U8", "[4]", "[0,4]") + "}", 4, "gap or overlap"},
  };
  for (const auto& hostile : cases) {
    const Status status = parse_status(file_of(hostile.json, hostile.data_bytes));
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << hostile.json;
    EXPECT_THAT(message_of(status), HasSubstr(hostile.message)) << hostile.json;
  }
}

TEST(SafetensorsTest, ReaderBoundsWhatAHeaderCosts) {
  // A length that is claimed is compared with what is there, and with the limit, before anything is
  // read.
  ByteWriter huge;
  huge.number(UINT64_MAX);
  EXPECT_THAT(message_of(parse_status(huge.take() + "{}")),
              HasSubstr("18446744073709551615 bytes is claimed"));
  std::string over = file_of("{}" + std::string(kMaxSafetensorsHeaderBytes - 1, ' '), 0);
  EXPECT_THAT(message_of(parse_status(std::move(over))), HasSubstr("the limit is 100000000"));

  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  EXPECT_THAT(message_of(parse_status(file_of(deep, 0))), HasSubstr("unknown field"));
  EXPECT_THAT(message_of(parse_status(file_of("{\"a\":" + std::string(100'000, '['), 0))),
              HasSubstr("an array where none belongs"));
  std::string dimensions = "1";
  for (int i = 0; i < 32; ++i) dimensions += ",1";
  EXPECT_THAT(message_of(parse_status(
                  file_of("{" + entry_of("a", "U8", "[" + dimensions + "]", "[0,1]") + "}", 1))),
              HasSubstr("more than 32 dimensions"));
}

// Names from a hostile file reach the log only cut short and without control characters.
TEST(SafetensorsTest, MessagesAreSafeToPrint) {
  const std::string name = std::string(1'000'000, 'n') + "\\u001b[2J\\n";
  const std::string message =
      message_of(parse_status(file_of("{" + entry_of(name, "U9", "[4]", "[0,4]") + "}", 4)));
  EXPECT_LT(message.size(), 400u);
  const std::string control = message_of(
      parse_status(file_of("{" + entry_of("\\u001b[2J", "U9", "[1]", "[0,1]") + "}", 1)));
  EXPECT_THAT(control, HasSubstr("tensor \"\\u001b[2J\" has"));
}

// A file whose tensors are not in the order of their names, and with an empty one in the middle.
TEST(SafetensorsTest, ReadsOtherWritersOrders) {
  const StatusOr<std::unique_ptr<SafetensorsFile>> file =
      parse_safetensors(file_of("{" + entry_of("a", "U8", "[2]", "[4,6]") + "," +
                                    entry_of("z", "F32", "[1]", "[0,4]") + "," +
                                    entry_of("e", "F32", "[0]", "[4,4]") + "}   ",
                                6),
                        "the test");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> names;
  for (const SafeTensor& tensor : (*file)->tensors) names.push_back(tensor.name);
  EXPECT_THAT(names, ElementsAre("z", "e", "a"));
}

}  // namespace
}  // namespace tessera::store
