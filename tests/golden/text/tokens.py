"""Writes tokens.json: vocabularies trained on a few hundred lines, and the ids that others give those lines.

    python tests/golden/text/tokens.py

needs tokenizers, transformers and sentencepiece. Byte-level vocabularies are trained and run by Hugging Face's tokenizers with the
splitting of the named model; SentencePiece's is trained and run by sentencepiece itself.
"""

import io
import json
import random
import sys
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
SIZE = 700

SNIPPETS = """
The capital of France is Paris. The capital of Japan is Tokyo.
It's 12:45 o'clock; they'll say "we've", I'D, don't, CAN'T and y'all'd've.
    indented by four spaces,	then a tab,  and  double  spaces   everywhere    
fn main() { println!("{:>8.3}", x[i] as f64 / 3.0e-7); } // TODO: 0xFF_u8
def f(a, *args, **kw):\\n    return {k: v for k, v in kw.items() if k != '__doc__'}
<div class="a-b_c" id='x1'>&nbsp;&lt;tag/&gt;</div><!-- comment -->
SELECT COUNT(*) FROM "t" WHERE name LIKE '%O''Brien%' AND price >= 1000.50;
https://example.org/path/to/page?query=a%20b&lang=zh-CN#section-2
user.name+tag@mail.example.co.uk wrote on 2026-11-26T15:04:05.678Z
1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 1e10 -42 +7 ½ ² ³ Ⅷ ٣٤٥ १२३
La cigüeña tocaba el saxofón detrás del palenque de paja; ¿qué pingüino?
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, ẞ
Portez ce vieux whisky au juge blond qui fume à l'œuvre — « déjà vu » !
Pchnąć w tę łódź jeża lub ośm skrzyń fig; zażółć gęślą jaźń
Příliš žluťoučký kůň úpěl ďábelské ódy, a já řekl: ahoj!
Съешь же ещё этих мягких французских булок, да выпей чаю. Ёлка, объём
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· καλημέρα σας, τι κάνετε;
דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם
صِف خَلقَ خَودٍ كَمِثلِ الشَمسِ إِذ بَزَغَت، مرحبا بالعالم؟
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश, नमस्ते दुनिया।
আমি বাংলায় গান গাই। ১২৩ টাকা
நான் தமிழ் பேசுகிறேன், வணக்கம் உலகம்
ภาษาไทยไม่มีช่องว่างระหว่างคำ สวัสดีชาวโลก ๑๒๓
我能吞下玻璃而不伤身体。价格：￥1,299（含税）！
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。「你好」『世界』
いろはにほへと ちりぬるを。カタカナとひらがな、漢字が混ざった文章です〜ｱｲｳ
다람쥐 헌 쳇바퀴에 타고파. 안녕하세요, 세계! ㅋㅋㅋ
Tôi có thể ăn thủy tinh mà không hại gì. Chào thế giới, đường phố
Türkçe: İstanbul'da ığdır, şöyle böyle; ıIİi
Ég get etið gler án þess að meiða mig. Þórður, ðæðr
Ŝajnas ke ĉiuj ĥoroj ĝojas. ŭa ĵaŭdo
🙂 😀😃 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇯🇵 ❤️ ☕️ 1️⃣ 🤷🏻‍♀️ emoji🎉in🎉words
𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝓈𝒸𝓇𝒾𝓅𝓉 𝟙𝟚𝟛 ﬁﬂ ﬀ ＦＵＬＬ　ＷＩＤＴＨ ﷺ
e\u0301 versus \u00e9, n\u0303 versus \u00f1, a\u030a\u0323 order, \u200bzero\u200cwidth\u200djoiners\ufeff
soft\u00adhyphen, no\u00a0break, thin\u2009space, line\u2028sep, \u202eRTL\u202c, bell\u0007
∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β ⇒ γ, ∑ᵢ xᵢ² ≤ √n · ‖x‖, ∂f/∂t ≠ 0, π≈3.14
───┼─── █▓▒░ ◆◇ ★☆ ♠♥♦♣ ✓✗ → ← ↑ ↓ ⇄ ™ © ® § ¶ † ‡ • … ‰
$E = mc^2$, \\\\frac{a}{b}, \\\\begin{equation} x_{i,j}^{(k)} \\\\end{equation} % note
{"key": [1, 2.5, null, true], "nested": {"a": "b\\\\n\\\\u00e9"}}
#!/bin/sh\\nset -eu; for f in *.txt; do grep -c "^#" "$f" | sort -rn; done
CamelCaseWord snake_case_word SCREAMING_SNAKE kebab-case-word mixedCASE123abc
aaaaaaaaaaaaaaaa bbbb!!!!!!!! ....... ,,,,,, ------- ======= ______ ((((()))))
<|endoftext|> [INST] <s> </s> <unk> <pad> ### System:
Hello
 Hello
Hello 
  two leading
trailing two  
.
'
''s 's 'S s' 'll 'LL 're've
don’t can’t “curly” ‘quotes’ –en —em
"""


def lines():
    snippets = [line.encode().decode("unicode_escape") if "\\" in line and line.isascii() else line
                for line in SNIPPETS.strip("\n").split("\n")]
    snippets = [snippet.replace("\\u0301", "\u0301") for snippet in snippets]
    rng = random.Random(0)
    found = list(snippets) + ["", " ", "   ", "\t", "\n", "\r\n", " \n ", "\n\n\n", "a\n\nb", "x\r\ny \n z"]
    while len(found) < 300:
        words = " ".join(rng.sample(snippets, 2)).split(" ")
        begin = rng.randrange(max(1, len(words) - 6))
        piece = words[begin:begin + rng.randrange(2, 9)]
        joint = rng.choice([" ", " ", " ", "  ", "", "\n", ", ", "\t"])
        line = joint.join(piece)
        if rng.random() < 0.15:
            line = line.upper()
        if rng.random() < 0.15:
            line = line[rng.randrange(3):]
        found.append(line)
    return found


GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITTINGS = {"gpt-2": GPT2, "llama-bpe": LLAMA3, "qwen2": QWEN2}


def split_by(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def smollm():
    return pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])


def byte_level(pre, splitting, lines):
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = splitting
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=sorted(alphabet), special_tokens=["<|endoftext|>"],
                                  show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    data = json.loads(tokenizer.to_str())
    vocabulary = sorted(data["model"]["vocab"].items(), key=lambda item: item[1])
    encoded = [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [token for token, _ in vocabulary],
        "types": [3] + [1] * (len(vocabulary) - 1),
        "merges": [" ".join(merge) for merge in data["model"]["merges"]],
        "tokenizer": data,
        "ids": encoded,
    }


def sentence_piece(lines):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if line.strip()), model_writer=model, vocab_size=SIZE + 300, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, allow_whitespace_only_pieces=True, split_digits=True, minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.get_piece_size()

    def kind(piece):
        if processor.is_unknown(piece):
            return 2
        if processor.is_control(piece):
            return 3
        return 6 if processor.is_byte(piece) else 1

    # Marks are no text to sentencepiece, and it puts a space before a text that begins with one, which Hugging Face's Llama does not.
    marked = ("<s>", "</s>", "<unk>")
    plain = [line for line in lines if not line.startswith(" ") and not any(mark in line for mark in marked)]
    return {
        "model": "llama",
        "tokens": [processor.id_to_piece(piece) for piece in range(count)],
        "scores": [processor.get_score(piece) for piece in range(count)],
        "types": [kind(piece) for piece in range(count)],
        "lines": plain,
        "ids": [processor.encode(line) for line in plain],
    }


def main():
    all_lines = lines()
    cases = {pre: byte_level(pre, split_by(pattern), all_lines) for pre, pattern in SPLITTINGS.items()}
    cases["smollm"] = byte_level("smollm", smollm(), all_lines)
    cases["sentencepiece"] = sentence_piece(all_lines)
    text = json.dumps({"lines": all_lines, "cases": cases}, ensure_ascii=False, separators=(",", ":"))
    (HERE / "tokens.json").write_text(text + "\n", encoding="utf-8")
    print({name: len(case["tokens"]) for name, case in cases.items()}, len(all_lines), len(text), file=sys.stderr)


if __name__ == "__main__":
    main()
