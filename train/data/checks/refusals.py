"""Answers that refuse: the domain's own refusal, and assistants' common phrases in several languages.

A model that was asked to write the answers often refused some of them; trained on those, the adapter refuses, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import re2

from train.data.examples import Example
from train.data.steps import Finding, finding

_BEGINNING_CHARS = 240
_PHRASES = re2.compile(
    r"(?i)"
    # English: somebody who cannot help, not a shop that cannot deliver.
    r"\bI(?:['’]m| am)?(?: really| very| truly)? ?(?:sorry|apologi[sz]e)\b[^.!?\n]{0,40}\bI(?:['’]m| am)?\s?"
    r"(?:can(?:['’]t|not| not)|won['’]t|will not|(?:not )?(?:un)?able to|not (?:allowed|permitted) to)"
    r"|\b(?:sorry|unfortunately|apologies|regret)\b[^.!?\n]{0,30}\bI(?:['’]m| am)?\s?"
    r"(?:can(?:['’]t|not| not)|won['’]t|unable to|not able to)\s(?:\w+ )?"
    r"(?:help|assist|answer|provide|comply|fulfil|do that|discuss|share|generate|create|write|support|engage)"
    r"|^\W*I(?:['’]m| am)?\s?(?:can(?:['’]t|not| not)|won['’]t|will not|unable to|not able to)\s(?:\w+ )?"
    r"(?:help|assist|answer|comply|fulfil|do that|discuss|generate|create|engage|support (?:that|this))"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b[^.!?\n]{0,60}"
    r"(?:can(?:['’]t|not| not)|don['’]t|do not|unable|not able|not (?:allowed|permitted|designed))"
    r"|\b(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|programming)\b"
    # German
    r"|\bich kann (?:dir|ihnen|euch)?\s?(?:dabei|dazu|damit|diese[rsn]? \w+|leider)[^.!?\n]{0,40}\bnicht\b"
    r"|\b(?:tut mir leid|leider|entschuldigung)\b[^.!?\n]{0,20}\b(?:kann|darf) ich\b[^.!?\n]{0,50}\b(?:nicht|kein)"
    r"|\b(?:tut mir leid|entschuldigung)\b[^.!?\n]{0,12}\bich (?:kann|darf)\b[^.!?\n]{0,50}\b(?:nicht|keine?n?)\b"
    r"|\bals (?:KI|künstliche intelligenz|sprachmodell)\b[^.!?\n]{0,60}\b(?:nicht|keine?n?)\b"
    # French
    r"|\bje (?:suis désolée?|regrette|m['’]excuse)[^.!?\n]{0,25}\bje ne (?:peux|puis|suis)\b"
    r"|\bje ne (?:peux|puis) (?:pas|malheureusement)\b[^.!?\n]{0,25}\b(?:aider|répondre|fournir|assister)\b"
    r"|\ben tant qu['’](?:IA|intelligence artificielle|assistant)\b[^.!?\n]{0,60}\bne\b"
    # Spanish, Portuguese, Italian
    r"|\b(?:lo siento|lamento|disculp[ae])\b[^.!?\n]{0,25}\bno (?:puedo|me es posible)\b"
    r"|\bno puedo (?:ayudar|asistir|responder|proporcionar)"
    r"|\bcomo (?:una? )?(?:IA|inteligencia artificial|modelo de lenguaje)\b[^.!?\n]{0,60}\bno\b"
    r"|\b(?:desculpe|sinto muito|lamento)\b[^.!?\n]{0,25}\bnão posso\b|\bnão posso (?:ajudar|responder|fornecer)"
    r"|\b(?:mi dispiace|scusa(?:mi)?|spiacente)\b[^.!?\n]{0,25}\bnon (?:posso|sono in grado)\b"
    r"|\bnon posso (?:aiutar|rispondere|fornire)"
    # Dutch, Swedish, Polish, Turkish
    r"|\b(?:het spijt me|sorry)\b[^.!?\n]{0,20}\bik kan\b[^.!?\n]{0,50}\b(?:niet|geen)\b"
    r"|\b(?:tyvärr|ledsen)\b[^.!?\n]{0,20}\bkan jag inte\b|\bjag kan (?:tyvärr )?inte (?:hjälpa|svara)"
    r"|\b(?:przykro mi|przepraszam|niestety)\b[^.!?\n]{0,25}\bnie mogę"
    r"|(?:üzgünüm|maalesef)\b[^.!?\n]{0,60}(?:yapamam|edemem|olamam|veremem|yapamıyorum|edemiyorum|olamıyorum)"
    # Russian, Ukrainian
    r"|(?:извините|простите|к сожалению|прошу прощения)[^.!?\n]{0,25}я не (?:могу|в состоянии)"
    r"|я не могу (?:помочь|ответить)"
    r"|(?:вибачте|на жаль)[^.!?\n]{0,25}я не можу"
    # Chinese, Japanese, Korean
    r"|(?:抱歉|对不起|對不起|很遗憾)[^。!?！？\n]{0,12}(?:无法|不能|無法)|我(?:无法|無法|不能)(?:提供|回答|帮助|幫助|协助|协助您)"
    r"|作为(?:一个|一名)?(?:AI|人工智能|语言模型)[^。\n]{0,30}(?:无法|不能)"
    r"|申し訳[^。\n]{0,40}(?:できません|できかねます|お答えできません)|(?:お答え|お手伝い)(?:することは)?できません"
    r"|죄송[^.\n]{0,40}(?:없습니다|수 없)"
    # Arabic, Hindi
    r"|(?:عذر[اًا]*|آسف|أعتذر)[^.؟\n]{0,25}(?:لا أستطيع|لا يمكنني)"
    r"|(?:क्षमा करें|माफ़ करें|माफ करें)[^।\n]{0,40}(?:नहीं कर सकता|नहीं कर सकती|नहीं दे सकता|नहीं दे सकती|असमर्थ)",
)


@dataclass(frozen=True)
class RefusalShare:
    """Answers that refuse, of `num_answers`.

    Attributes:
        num_own: Rows out of scope with the domain's own refusal, as they should be.
        findings: All other answers that refuse.
    """

    num_answers: int
    num_own: int
    findings: tuple[Finding, ...]

    @property
    def share(self) -> float:
        """Of the answers that refuse and should not."""
        return len(self.findings) / self.num_answers if self.num_answers else 0.0


def check_refusals(examples: Sequence[Example], refusal: str | None) -> RefusalShare:
    """Find answers that refuse.

    Args:
        refusal: The domain's own, `answer.refusal`.
    """
    own = (refusal or "").strip()
    found = {answer: refuses(answer) for answer in {example.answer for example in examples}}
    num_answers = num_own = 0
    findings = []
    for example in examples:
        num_answers += bool(example.answer)
        is_own = bool(own) and example.answer.strip() == own
        if is_own and not example.in_scope:
            num_own += 1
        elif is_own:
            findings.append(finding(example, "in scope, but answered with the domain's refusal"))
        elif found[example.answer]:
            findings.append(finding(example, "the answer refuses", text=example.answer))
    return RefusalShare(num_answers, num_own, tuple(findings))


def refuses(answer: str) -> bool:
    """Whether an answer begins as assistants refuse. `I'm sorry for the delay` and `We cannot refund this` do not."""
    return _PHRASES.search(answer[:_BEGINNING_CHARS]) is not None
