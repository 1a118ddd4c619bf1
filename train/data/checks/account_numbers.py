"""Checksums of payment cards and bank accounts."""

import re

_CARD_PREFIX = re.compile(
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|62\d{14,17}"
)
"""Visa, Mastercard (two ranges), American Express, Discover, JCB, Diners Club, UnionPay. Visa's old 13 digits are
left out: article numbers (EAN) look the same."""

# ISO 13616: characters of a country's IBAN.
_IBAN_LENGTHS = {
    length: frozenset(countries.split())
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL FK SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK MN",
        21: "CH HR LI LV",
        22: "BG BH DE GB GE IE ME RS VA CR",
        23: "AE GI IL IQ TL OM SO",
        24: "AD CZ ES MD PK RO SA SE SK TN VG DZ",
        25: "PT ST LY",
        26: "IS TR",
        27: "FR GR IT MC MR SM BI DJ",
        28: "AL AZ BY CY DO GT HU LB PL NI SV",
        29: "BR PS QA UA EG",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
}


def is_card_number(digits: str) -> bool:
    """Whether digits have an issuer's prefix and length, and the checksum of ISO/IEC 7812 (Luhn)."""
    return _CARD_PREFIX.fullmatch(digits) is not None and _luhn(digits)


def is_iban(text: str) -> bool:
    """Whether letters and digits, without spaces, have the length of the country and the checksum of ISO 7064."""
    if text[:2] not in _IBAN_LENGTHS.get(len(text), ()):
        return False
    return int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def _luhn(digits: str) -> bool:
    doubled = [2 * int(digit) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(value - 9 * (value > 9) for value in doubled)) % 10 == 0
