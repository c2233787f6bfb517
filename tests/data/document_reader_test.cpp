#include "data/document_reader.h"

#include "data/data_test_files.h"

namespace tessera::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class DocumentReaderTest : public DataTest {
 protected:
  // The documents of a file, each put together from its pieces; or the error.
  StatusOr<std::vector<std::string>> documents(const std::string& file,
                                               const std::string& field = "text") {
    TESSERA_ASSIGN_OR_RETURN(const std::vector<InputFile> files, list_input_files({file}));
    TESSERA_ASSIGN_OR_RETURN(const auto reader, open_documents(files[0], field));
    std::vector<std::string> out;
    bool open = false;
    for (Piece piece;;) {
      TESSERA_ASSIGN_OR_RETURN(const bool more, reader->next(&piece));
      if (!more) break;
      EXPECT_FALSE(piece.text.empty());
      EXPECT_LE(piece.text.size(), kPieceBytes);
      if (!open) out.emplace_back();
      out.back() += piece.text;
      open = !piece.ends_document;
    }
    EXPECT_FALSE(open);
    EXPECT_EQ(reader->stored_bytes_read(), files[0].bytes);
    return out;
  }
  std::string refusal(const std::string& file, const std::string& field = "text") {
    const auto result = documents(file, field);
    return result.ok() ? "no error" : message_of(result.status());
  }
};

TEST_F(DocumentReaderTest, ATextFileIsOneDocumentOfAnySize) {
  for (const size_t bytes :
       {size_t{1}, kPieceBytes - 1, kPieceBytes, kPieceBytes + 1, 3 * kPieceBytes + 12345}) {
    const std::string text = text_of(bytes);
    EXPECT_THAT(*documents(write("a.txt", text)), ElementsAre(text)) << bytes;
    EXPECT_THAT(*documents(write_gzip("a.txt.gz", text)), ElementsAre(text)) << bytes;
  }
  EXPECT_TRUE(documents(write("empty.txt", ""))->empty());
  EXPECT_TRUE(documents(write_gzip("empty.txt.gz", ""))->empty());
}

TEST_F(DocumentReaderTest, ReadsSeveralGzipMembers) {
  const std::string one = (write_gzip("x", "first\n"), read("x"));
  const std::string two = (write_gzip("y", "second\n"), read("y"));
  EXPECT_THAT(*documents(write("both.gz", one + two)), ElementsAre("first\nsecond\n"));
}

TEST_F(DocumentReaderTest, RefusesBrokenGzip) {
  write_gzip("a.gz", text_of(100000));
  const std::string good = read("a.gz");
  EXPECT_THAT(refusal(write("cut.gz", good.substr(0, good.size() - 1))), HasSubstr("truncated"));
  EXPECT_THAT(refusal(write("none.gz", "")), HasSubstr("truncated"));
  EXPECT_THAT(refusal(write("text.gz", "plain text")), HasSubstr("take .gz off its name"));
  std::string flipped = good;
  flipped[good.size() - 6] ^= 1;  // in the checksum
  EXPECT_THAT(refusal(write("sum.gz", flipped)), HasSubstr("not valid gzip data"));
}

TEST_F(DocumentReaderTest, EveryJsonLineIsADocument) {
  const std::string lines =
      "{\"text\": \"one\\n\\u00e4\", \"id\": 1}\r\n\n{\"text\":\"\"}\n{\"text\":\"two\"}";
  EXPECT_THAT(*documents(write("a.jsonl", lines)), ElementsAre("one\n\xc3\xa4", "two"));
  EXPECT_THAT(*documents(write_gzip("a.jsonl.gz", lines)), ElementsAre("one\n\xc3\xa4", "two"));
  EXPECT_THAT(*documents(write("b.jsonl", "{\"body\": \"x\"}\n"), "body"), ElementsAre("x"));
}

TEST_F(DocumentReaderTest, JsonLinesMayBeLongerThanAPiece) {
  const std::string text(3 * kPieceBytes + 5, 'a');
  EXPECT_THAT(*documents(write("a.jsonl", "{\"text\":\"" + text + "\"}\n{\"text\":\"b\"}\n")),
              ElementsAre(text, "b"));
}

TEST_F(DocumentReaderTest, JsonRefusalsNameTheLine) {
  EXPECT_THAT(refusal(write("a.jsonl", "{\"text\":\"x\"}\n\n{\"text\":")),
              HasSubstr("a.jsonl:3: not a JSON object"));
  EXPECT_THAT(refusal(write("a.jsonl", "[1]\n")), HasSubstr("a.jsonl:1: not a JSON object"));
  EXPECT_THAT(refusal(write("a.jsonl", "{\"body\":\"x\",\"id\":2}\n")),
              HasSubstr("a.jsonl:1: no field \"text\" (there are: body, id)"));
  EXPECT_THAT(refusal(write("a.jsonl", "{\"text\":7}\n")), HasSubstr("is a number, not a string"));
  EXPECT_THAT(refusal(write("a.jsonl", std::string(kMaxLineBytes + kPieceBytes + 1, ' '))),
              HasSubstr("a.jsonl:1: a line of more than"));
}

TEST(CutPoint, PrefersLinesThenSpacesThenCharacters) {
  EXPECT_EQ(cut_point("ab\ncd ef"), 3u);
  EXPECT_EQ(cut_point("abcd ef"), 5u);
  EXPECT_EQ(cut_point("abcd"), 4u);
  EXPECT_EQ(cut_point("ab\xe2\x96"), 2u);      // a character begun
  EXPECT_EQ(cut_point("ab\xe2\x96\x81"), 2u);  // may be complete: it is left to the next piece
  EXPECT_EQ(cut_point("\x81\x81\x81\x81\x81"), 5u);  // no UTF-8
  EXPECT_EQ(cut_point("\xe2"), 1u);
}

TEST_F(DocumentReaderTest, FoldersAreWalkedInOrderWithoutHiddenFilesAndLinks) {
  write("in/b.txt", "b");
  write("in/a/z.txt", "z");
  write("in/a/.hidden", "h");
  write("in/.git/config", "g");
  write("outside.txt", "o");
  std::filesystem::create_symlink(path("outside.txt"), path("in/link.txt"));
  std::filesystem::create_directory_symlink(path("in"), path("in/loop"));
  const auto files = list_input_files({path("in")});
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_THAT((*files)[0].path, testing::EndsWith("in/a/z.txt"));
  EXPECT_THAT((*files)[1].path, testing::EndsWith("in/b.txt"));
}

TEST_F(DocumentReaderTest, InputListRefusals) {
  const auto refusal_of = [](const std::vector<std::string>& inputs) {
    return message_of(list_input_files(inputs).status());
  };
  write("in/a.txt", "a");
  std::filesystem::create_directory(path("empty"));
  EXPECT_THAT(refusal_of({}), HasSubstr("no input files"));
  EXPECT_THAT(refusal_of({path("none.txt")}), HasSubstr("none.txt: can't read this input"));
  EXPECT_THAT(refusal_of({path("empty")}), HasSubstr("no file in this folder"));
  EXPECT_THAT(refusal_of({path("in"), path("in/../in/a.txt")}), HasSubstr("given twice"));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(refusal_of({path("pipe")}), HasSubstr("neither a regular file nor a folder"));
}

}  // namespace
}  // namespace tessera::data
