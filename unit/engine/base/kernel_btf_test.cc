#include "engine/base/kernel_btf.h"

#include <gtest/gtest.h>
#include <linux/btf.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "unit/support/matchers.h"

namespace stasis {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

// BTF as the kernel's documentation lays it down, written by hand.
class Writer {
 public:
  std::uint32_t Add(const std::string& name, std::uint32_t kind, std::uint32_t count, bool flag,
                    std::uint32_t size, std::initializer_list<std::uint32_t> rest = {}) {
    Put(types_, Name(name));
    Put(types_, (flag ? 1u << 31 : 0u) | kind << 24 | count);
    Put(types_, size);
    for (const std::uint32_t word : rest) Put(types_, word);
    return ++last_;
  }
  std::uint32_t Name(const std::string& name) {
    if (name.empty()) return 0;
    const auto at = static_cast<std::uint32_t>(strings_.size());
    strings_ += name + '\0';
    return at;
  }
  std::string Bytes() const {
    std::string bytes;
    Put(bytes, BTF_MAGIC | BTF_VERSION << 16);
    Put(bytes, 24);
    Put(bytes, 0);
    Put(bytes, static_cast<std::uint32_t>(types_.size()));
    Put(bytes, static_cast<std::uint32_t>(types_.size()));
    Put(bytes, static_cast<std::uint32_t>(strings_.size()));
    return bytes + types_ + strings_;
  }

 private:
  static void Put(std::string& to, std::uint32_t word) {
    to.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
  std::string types_, strings_ = std::string(1, '\0');
  std::uint32_t last_ = 0;
};

// struct inner { u32 low; u32 high; };
// struct outer { u32 first; union { u32 either; struct inner or_this; }; u32 a : 3, b : 5; void *many[4]; };
Writer Example() {
  Writer btf;
  const std::uint32_t word = btf.Add("u32", BTF_KIND_INT, 0, false, 4, {32});
  const std::uint32_t pointer = btf.Add("", BTF_KIND_PTR, 0, false, 0);
  const std::uint32_t alias = btf.Add("word_t", BTF_KIND_TYPEDEF, 0, false, word);
  const std::uint32_t inner = btf.Add("inner", BTF_KIND_STRUCT, 2, false, 8,
                                      {btf.Name("low"), word, 0, btf.Name("high"), alias, 32});
  const std::uint32_t either =
      btf.Add("", BTF_KIND_UNION, 2, false, 8,
              {btf.Name("either"), word, 0, btf.Name("or_this"), inner, 0});
  const std::uint32_t array = btf.Add("", BTF_KIND_ARRAY, 0, false, 0, {pointer, word, 4});
  btf.Add("outer", BTF_KIND_STRUCT, 5, true, 48,
          {btf.Name("first"), word, 0, 0, either, 32, btf.Name("a"), word, 3u << 24 | 96,
           btf.Name("b"), word, 5u << 24 | 99, btf.Name("many"), array, 128});
  return btf;
}

TEST(KernelBtfTest, FindsFieldsByName) {
  const Result<KernelBtf> btf = KernelBtf::Parse(Example().Bytes());
  ASSERT_TRUE(btf.ok()) << btf.status();
  const auto field = btf->Find("outer", "many");
  ASSERT_TRUE(field.ok()) << field.status();
  EXPECT_EQ(field->offset, 16u);
  EXPECT_EQ(field->size, 32u);
  EXPECT_EQ(field->bits, 0u);
  EXPECT_EQ(btf->SizeOf("outer").value_or(0), 48u);
}

TEST(KernelBtfTest, LooksIntoNamelessAndNamedStructures) {
  const Result<KernelBtf> btf = KernelBtf::Parse(Example().Bytes());
  ASSERT_TRUE(btf.ok()) << btf.status();
  EXPECT_EQ(btf->Find("outer", "either")->offset, 4u);
  EXPECT_EQ(btf->Find("outer", "or_this.high")->offset, 8u);
  EXPECT_FALSE(btf->Find("outer", "or_this.other").ok());
  EXPECT_FALSE(btf->Find("outer", "first.low").ok());
}

TEST(KernelBtfTest, KnowsTheBitsOfBitFields) {
  const Result<KernelBtf> btf = KernelBtf::Parse(Example().Bytes());
  ASSERT_TRUE(btf.ok()) << btf.status();
  const auto field = btf->Find("outer", "b");
  ASSERT_TRUE(field.ok()) << field.status();
  EXPECT_EQ(field->offset, 12u);
  EXPECT_EQ(field->shift, 3u);
  EXPECT_EQ(field->bits, 5u);
}

TEST(KernelBtfTest, KnowsConstants) {
  Writer writer = Example();
  writer.Add("numbers", BTF_KIND_ENUM, 2, false, 4,
             {writer.Name("ONE"), 1, writer.Name("TEN"), 10});
  const Result<KernelBtf> btf = KernelBtf::Parse(writer.Bytes());
  ASSERT_TRUE(btf.ok()) << btf.status();
  EXPECT_EQ(btf->Constant("TEN").value_or(0), 10u);
  EXPECT_FALSE(btf->Constant("TWO").ok());
}

TEST(KernelBtfTest, NamesWhatIsNotThere) {
  const Result<KernelBtf> btf = KernelBtf::Parse(Example().Bytes());
  ASSERT_TRUE(btf.ok()) << btf.status();
  EXPECT_THAT(btf->Find("outer", "third").status(),
              StatusIs(StatusCode::kNotFound, HasSubstr("outer.third")));
  EXPECT_THAT(btf->Find("other", "first").status(), StatusIs(StatusCode::kNotFound));
}

TEST(KernelBtfTest, DoesNotChooseBetweenStructuresOfOneName) {
  Writer writer = Example();
  writer.Add("outer", BTF_KIND_STRUCT, 1, false, 8, {writer.Name("first"), 1, 32});
  const Result<KernelBtf> btf = KernelBtf::Parse(writer.Bytes());
  ASSERT_TRUE(btf.ok()) << btf.status();
  EXPECT_FALSE(btf->Find("outer", "first").ok());
  EXPECT_FALSE(btf->SizeOf("outer").ok());
}

TEST(KernelBtfTest, RefusesWhatIsCutOff) {
  const std::string whole = Example().Bytes();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(KernelBtf::Parse(whole.substr(0, size)).ok()) << size;
  }
}

TEST(KernelBtfTest, ReadsTheRunningKernel) {
  const Result<std::shared_ptr<const KernelBtf>> btf = KernelBtf::Running();
  if (!btf.ok()) GTEST_SKIP() << btf.status();
  EXPECT_EQ((*btf)->Find("list_head", "prev")->offset, 8u);
  EXPECT_TRUE((*btf)->Find("task_struct", "files").ok());
}

}  // namespace
}  // namespace stasis
