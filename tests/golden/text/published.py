"""Renders chats by the templates that models are published with; writes published.json beside this file.

    python tests/golden/text/published.py FOLDER-OF-TEMPLATES [NAME ...] [--out FILE]

Needs transformers 5.23 and jinja2 3.1.6, and a folder of `.jinja` files: llama.cpp keeps one at `models/templates`. Without names it
takes those whose models are under the Apache 2.0 or the MIT licence (PERMISSIVE); `--out` with other names checks more without keeping it.
"""

import argparse
import datetime
import pathlib

import transformers.utils.chat_template_utils as utils

from generate import case_of, write

PERMISSIVE = {
    "Apertus-8B-Instruct": "Apache-2.0",
    "ByteDance-Seed-OSS": "Apache-2.0",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "MIT",
    "deepseek-ai-DeepSeek-V3.1": "MIT",
    "GLM-4.6": "MIT",
    "HuggingFaceTB-SmolLM3-3B": "Apache-2.0",
    "ibm-granite-granite-3.3-2B-Instruct": "Apache-2.0",
    "microsoft-Phi-3.5-mini-instruct": "MIT",
    "mistralai-Mistral-Nemo-Instruct-2407": "Apache-2.0",
    "openai-gpt-oss-120b": "Apache-2.0",
    "Qwen-Qwen2.5-7B-Instruct": "Apache-2.0",
    "Qwen-Qwen3-0.6B": "Apache-2.0",
    "Qwen3-Coder": "Apache-2.0",
}

CALL = {"type": "function", "id": "abcdef123", "function": {"name": "get_weather", "arguments": {"city": "Łódź", "unit": "c"}}}
CHATS = {
    "one": [["user", "  Who was Emma?\n"]],
    "turns": [
        ["system", "Be brief. é🚀"],
        ["user", "Hi <b> & 'you'"],
        ["assistant", "<think>\nhm\n</think>\n\nHello"],
        ["user", " Bye "],
    ],
    "tools": [
        ["user", "How warm is it?"],
        ["assistant", "", {"tool_calls": [CALL]}],
        ["tool", "{\"celsius\": 7}", {"tool_call_id": "abcdef123", "name": "get_weather"}],
        ["assistant", "Seven degrees."],
        ["user", "Thanks"],
    ],
    "disorder": [["user", "Hi"], ["user", "again"]],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The \"weather\" <now>, é",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where?"},
                    "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    }
]
NOW = datetime.datetime(2024, 7, 26, 12, 0, 0)


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_name("published.json"))
    arguments = parser.parse_args()
    utils.datetime = FixedTime  # strftime_now reads it

    templates, cases = {}, []
    for name in arguments.names or PERMISSIVE:
        templates[name] = (arguments.folder / f"{name}.jinja").read_text(encoding="utf-8")
        for chat, turns in CHATS.items():
            messages = [{"role": role, "content": content, **(more[0] if more else {})} for role, content, *more in turns]
            for values in [{}, {"tools": TOOLS}, {"enable_thinking": False}]:
                # Not every pair of everything, so that the file stays small.
                prompt = chat == "turns" or (chat == "tools" and "tools" in values)
                cases.append(case_of(name, templates[name], chat, messages, values, prompt))
    write(arguments.out, templates, CHATS, cases)


if __name__ == "__main__":
    main()
