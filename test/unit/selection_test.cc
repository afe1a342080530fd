// SPDX-License-Identifier: Apache-2.0
#include "core/selection.h"

#include <gtest/gtest.h>

#include "cni/codes.h"

namespace egressclass {
namespace {

ClassConfig make_class(const std::string& name, std::vector<SelectRule> select = {}) {
  ClassConfig c;
  c.name = name;
  c.select = std::move(select);
  return c;
}

Config make_config(std::vector<ClassConfig> classes) {
  Config config;
  config.classes = std::move(classes);
  return config;
}

Pod pod(const std::string& name_space, const std::string& name, std::optional<std::string> annotation = {}) {
  return Pod{name_space, name, "", std::move(annotation)};
}

std::string chosen(const Config& config, const Pod& pod) {
  const auto choice = choose_class(config, pod, "config.json");
  if (!choice) return "error: " + choice.error().msg;
  return choice->chosen == nullptr ? "none" : choice->chosen->name;
}

TEST(MatchesPattern, KnowsTheTwoWildcards) {
  struct Case {
    const char* pattern;
    const char* text;
    bool matches;
  };
  for (const auto& [pattern, text, matches] : std::vector<Case>{
           {"web", "web", true},
           {"web", "web2", false},
           {"web", "we", false},
           {"web", "", false},
           {"*", "", true},
           {"*", "anything", true},
           {"**", "", true},
           {"?", "", false},
           {"?", "a", true},
           {"?", "ab", false},
           {"web-*", "web-", true},
           {"web-*", "web-1-a", true},
           {"web-*", "aweb-1", false},
           {"*-db", "my-db", true},
           {"*-db", "my-db2", false},
           {"a*b*c", "aXbYc", true},
           {"a*b*c", "abbc", true},
           {"a*b*c", "acb", false},
           {"*ab", "aab", true},
           {"*a?c", "aabc", true},
           {"a.c", "abc", false},
           {"checkout-??", "checkout-01", true},
           {"checkout-??", "checkout-1", false},
       })
    EXPECT_EQ(matches_pattern(pattern, text), matches) << pattern << " and " << text;
}

TEST(MatchesPattern, IsFastOnAHostilePattern) {
  std::string pattern;
  for (int i = 0; i < 100; ++i) pattern += "a*";
  EXPECT_FALSE(matches_pattern(pattern + "b", std::string(253, 'a')));  // backtracking into each star would not end
}

TEST(ChooseClass, WithoutAnythingIsNone) {
  EXPECT_EQ(chosen(make_config({}), pod("shop", "web")), "none");
  EXPECT_EQ(chosen(make_config({make_class("a")}), pod("shop", "web")), "none");
}

TEST(ChooseClass, SelectsByNamespaceAndPod) {
  const Config config = make_config(
      {make_class("billing", {{{"billing"}, {}}, {{"shop"}, {"checkout-*"}}}), make_class("jobs", {{{}, {"job-?"}}})});
  EXPECT_EQ(chosen(config, pod("billing", "any")), "billing");
  EXPECT_EQ(chosen(config, pod("shop", "checkout-1")), "billing");
  EXPECT_EQ(chosen(config, pod("shop", "web")), "none");
  EXPECT_EQ(chosen(config, pod("other", "checkout-1")), "none");
  EXPECT_EQ(chosen(config, pod("other", "job-1")), "jobs");
}

TEST(ChooseClass, TakesTheFirstInFileOrder) {
  const Config config = make_config({make_class("first", {{{"shop"}, {}}}), make_class("second", {{{"*"}, {}}})});
  EXPECT_EQ(chosen(config, pod("shop", "web")), "first");
  EXPECT_EQ(chosen(config, pod("other", "web")), "second");
}

TEST(ChooseClass, PrefersAnnotationToSelectToDefault) {
  Config config =
      make_config({make_class("default"), make_class("selected", {{{"shop"}, {}}}), make_class("annotated")});
  config.classes[0].is_default = true;
  EXPECT_EQ(chosen(config, pod("shop", "web", "annotated")), "annotated");
  EXPECT_EQ(chosen(config, pod("shop", "web")), "selected");
  EXPECT_EQ(chosen(config, pod("other", "web")), "default");
}

TEST(ChooseClass, SelectsAPodWithoutNameOnlyByPatternsThatMatchNothing) {
  EXPECT_EQ(chosen(make_config({make_class("a", {{{"*"}, {}}})}), pod("", "")), "a");
  EXPECT_EQ(chosen(make_config({make_class("a", {{{"?*"}, {}}})}), pod("", "")), "none");
}

TEST(ChooseClass, AnUnknownClassIsAnErrorThatNamesAll) {
  const Config config = make_config({make_class("a"), make_class("b")});
  const auto choice = choose_class(config, pod("shop", "web", "x"), "/etc/some/config.json");
  ASSERT_FALSE(choice);
  EXPECT_EQ(choice.error().code, codes::kUnknownClass);
  EXPECT_EQ(choice.error().msg, "pod names egress class \"x\", which does not exist");
  for (const char* part : {"egressclass.io/class", "shop/web", "/etc/some/config.json", "classes a, b;", "apply"})
    EXPECT_NE(choice.error().details.find(part), std::string::npos) << part << " in " << choice.error().details;
}

TEST(ChooseClass, AnUnknownClassDoesNotFallBackToSelectOrDefault) {
  Config config = make_config({make_class("a", {{{"*"}, {}}})});
  config.classes[0].is_default = true;
  EXPECT_EQ(chosen(config, pod("shop", "web", "x")).substr(0, 6), "error:");
  EXPECT_EQ(chosen(config, pod("shop", "web", "")).substr(0, 6), "error:");
}

TEST(ChooseClass, ListsOnlyTheFirstOfManyClasses) {
  Config config;
  for (int i = 0; i < 100; ++i) config.classes.push_back(make_class("c" + std::to_string(i)));
  const auto choice = choose_class(config, pod("shop", "web", "x"), "f");
  ASSERT_FALSE(choice);
  EXPECT_NE(choice.error().details.find("c9 and 90 more"), std::string::npos) << choice.error().details;
}

TEST(ChooseClass, AHostileAnnotationIsUnknownAndHarmless) {
  for (const std::string& hostile :
       {std::string(1U << 20U, 'x'), std::string("a\n\x1b[2J\xff"), std::string("a\0", 2)}) {
    const auto choice = choose_class(make_config({make_class("a")}), pod("shop", "web", hostile), "f");
    ASSERT_FALSE(choice);
    EXPECT_EQ(choice.error().code, codes::kUnknownClass);
    const std::string text = choice.error().msg + choice.error().details;
    EXPECT_LT(text.size(), 500U);
    for (const char c : text) EXPECT_TRUE(c >= ' ' && c <= '~');
  }
}

TEST(ChooseClass, IgnoredAnnotationsHaveNoEffect) {
  Config config = make_config({make_class("a"), make_class("b", {{{"shop"}, {}}})});
  config.annotations = false;
  EXPECT_EQ(chosen(config, pod("shop", "web", "a")), "b");
  EXPECT_EQ(chosen(config, pod("shop", "web", "x")), "b");
  EXPECT_EQ(chosen(config, pod("other", "web", "a")), "none");
}

TEST(ChooseClass, OnlyEntitledNamespacesMayNameAClass) {
  Config config = make_config({make_class("billing")});
  config.classes[0].entitled = {"billing", "shop-*"};
  EXPECT_EQ(chosen(config, pod("billing", "web", "billing")), "billing");
  EXPECT_EQ(chosen(config, pod("shop-eu", "web", "billing")), "billing");
  const auto choice = choose_class(config, pod("evil", "web", "billing"), "/etc/f");
  ASSERT_FALSE(choice);
  EXPECT_EQ(choice.error().code, codes::kNotEntitled);
  EXPECT_EQ(choice.error().msg, "namespace \"evil\" may not use egress class \"billing\"");
  for (const char* part : {"/etc/f", "billing, shop-*", "evil/web"})
    EXPECT_NE(choice.error().details.find(part), std::string::npos) << part << " in " << choice.error().details;
}

TEST(ChooseClass, EntitlementBindsOnlyAnnotations) {
  Config config = make_config({make_class("billing", {{{"shop"}, {}}})});
  config.classes[0].entitled = {"billing"};
  EXPECT_EQ(chosen(config, pod("shop", "web")), "billing");
}

}  // namespace
}  // namespace egressclass
