"""The language model behind every bot of bots.py: it thinks as long, and answers as much, as the question says.

Only the standard library: the programs that ask it have environments of their own.
"""
import re

# What it says at once to anything else, such as the word by which a user asks for the rest.
OTHER = "这不是一个问题。"


def question(user, seconds, length):
    return f"{user}：想 {seconds} 秒，答 {length} 字节"


def think(text):
    """How long an answer takes, and the answer: exactly so many bytes, different for every question."""
    found = re.fullmatch(r"(\w+)：想 (\d+) 秒，答 (\d+) 字节", text)
    if not found:
        return 0, OTHER
    user, seconds, length = found[1], int(found[2]), int(found[3])
    answer, number = f"答 {user}：", 0
    while True:
        number += 1
        more = f"第 {number} 点，这句话是答案的一部分。" + "\n\n" * (number % 5 == 0)
        if len((answer + more).encode()) > length:
            return seconds, answer + "." * (length - len(answer.encode()))
        answer += more
