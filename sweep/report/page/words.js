"use strict";
// LoraSweep.words: the words of a text, which of them repeat, and how two texts differ. Uses neither page nor data.

(() => {
  // As lora_sweep/scoring/score.py: a run of letters, marks, digits and pictures is a word; in scripts that put no space
  // between words, each character is.
  const UNSPACED = "\\p{sc=Han}\\p{sc=Hiragana}\\p{sc=Katakana}\\p{sc=Thai}\\p{sc=Lao}\\p{sc=Khmer}\\p{sc=Myanmar}";
  const LETTER = "\\p{L}\\p{M}\\p{N}\\p{So}";
  const WORD = new RegExp(`(?=[${LETTER}])[${UNSPACED}]|(?:(?![${UNSPACED}])[${LETTER}])+`, "gu");
  const MAX_COMPARED_WORDS = 3000; // a table of 9 million cells takes 0.1 s

  // [{start, end, key}] for each word; words with equal keys are equal.
  function split(text) {
    return Array.from(text.matchAll(WORD), (match) => ({
      start: match.index,
      end: match.index + match[0].length,
      key: match[0].toLowerCase(),
    }));
  }

  // For each word, whether it is in a run of four words that occurred earlier in the text.
  function repeated(words) {
    const seen = new Set();
    const flags = new Array(words.length).fill(false);
    for (let at = 0; at + 4 <= words.length; at += 1) {
      const gram = [0, 1, 2, 3].map((step) => words[at + step].key).join(" ");
      if (seen.has(gram)) flags.fill(true, at, at + 4);
      seen.add(gram);
    }
    return flags;
  }

  // How `words` differs from `others`: fresh[i] says that words[i] is not in `others` at this place; gone is a list of
  // {at, from, to}: others[from..to) are missing in front of words[at].
  function differences(others, words) {
    const before = others.slice(0, MAX_COMPARED_WORDS);
    const after = words.slice(0, MAX_COMPARED_WORDS);
    const end = { a: before.length, b: after.length, size: 0 };
    const fresh = new Array(words.length).fill(false).fill(true, 0, after.length);
    const gone = [];
    let last = { a: 0, b: 0, size: 0 };
    for (const run of [...meaningful(common(before, after), last, end), end]) {
      const from = last.a + last.size;
      if (run.a > from) gone.push({ at: last.b + last.size, from, to: run.a });
      fresh.fill(false, run.b, run.b + run.size);
      last = run;
    }
    return { fresh, gone };
  }

  // Runs of words that both have, in order: the longest common subsequence, as [{a, b, size}].
  function common(before, after) {
    const width = after.length + 1;
    const lengths = new Uint16Array((before.length + 1) * width);
    for (let i = before.length - 1; i >= 0; i -= 1) {
      for (let j = after.length - 1; j >= 0; j -= 1) {
        const cell = i * width + j;
        lengths[cell] =
          before[i].key === after[j].key
            ? lengths[cell + width + 1] + 1
            : Math.max(lengths[cell + width], lengths[cell + 1]);
      }
    }
    const runs = [];
    let [i, j] = [0, 0];
    while (i < before.length && j < after.length) {
      if (before[i].key === after[j].key) {
        const last = runs[runs.length - 1];
        if (last && last.a + last.size === i && last.b + last.size === j) last.size += 1;
        else runs.push({ a: i, b: j, size: 1 });
        i += 1;
        j += 1;
      } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i += 1;
      else j += 1;
    }
    return runs;
  }

  // Drop runs of one or two words between changes of the same length, such as "of the": two texts share many of them
  // by chance, and with them the marked text is hard to read.
  function meaningful(runs, start, end) {
    const change = (left, right) => Math.max(right.a - left.a - left.size, right.b - left.b - left.size);
    const kept = [start];
    runs.forEach((run, place) => {
      const before = change(kept[kept.length - 1], run);
      const after = change(run, runs[place + 1] || end);
      if (run.size > 2 || before < run.size || after < run.size) kept.push(run);
    });
    return kept.slice(1);
  }

  LoraSweep.words = { split, repeated, differences };
})();
