"""General texts whose likelihood is measured without and with the adapter; all written for Lorikeet."""

from config.forgetting import TextName
from train.data.general import FORGETTING_TEXT

NEWS = """\
Harbour tunnel to open in March, two years late

The tunnel under the northern harbour will open to traffic on 14 March, the transport ministry said on Tuesday. Work \
began six years ago, and the first date for the opening was set for the spring before last. Engineers found soft clay \
where older surveys had shown rock, and 400 metres of the western tube had to be dug again by hand.

The final cost is 1.3 billion, according to a report that parliament received this week, about a fifth more than \
planned. "We have paid for what we did not know," the minister told reporters. Opposition members asked why the ground \
had been tested at only nine points along the route, and demanded an independent inquiry before the summer break.

Around 38,000 vehicles a day are expected to use the tunnel, which cuts the trip from the airport to the old town to \
eleven minutes. Ferries on the same route will continue to run until the end of the year. Shop owners near the ferry \
terminal said they feared for their trade, while residents along the ring road welcomed the news. Traffic there has \
grown by 30 per cent since the bridge was closed to lorries in 2019.
"""

DIALOGUE = """\
Mara: Did you call the plumber?
Jon: I did. He can come on Thursday, between eight and twelve.
Mara: That is four hours. I have to be at work at nine.
Jon: I know. I can stay at home in the morning and go in after lunch.
Mara: Are you sure? You stayed at home last time, too.
Jon: It's fine. I have a report to write anyway, and nobody interrupts me here.
Mara: Except the plumber.
Jon: Except the plumber. Where is the leak exactly? He asked, and I could not tell him.
Mara: Under the sink, behind the blue pipe. If you put your hand there, you can feel the drops.
Jon: And the bucket?
Mara: I emptied it this morning. It takes about a day until it is full.
Jon: Then it is getting worse. On Sunday it took two days.
Mara: Should we turn the water off at night?
Jon: Good idea. I'll do it before I go to bed, and you turn it on when you get up. You are always up first.
Mara: Only because somebody has to feed the cat.
Jon: She would wait for me.
Mara: She would not. She would sit on your head, as she did last week.
Jon: True. All right, you take the cat, and I take the plumber.
"""

CODE = '''\
class Inventory:
    """Counts of articles on the shelves, by name."""

    def __init__(self, counts=None):
        self.counts = dict(counts or {})

    def add(self, name, number=1):
        if number <= 0:
            raise ValueError(f"number must be positive, got {number}")
        self.counts[name] = self.counts.get(name, 0) + number

    def take(self, name, number=1):
        available = self.counts.get(name, 0)
        if number > available:
            raise KeyError(f"only {available} of {name!r} left")
        self.counts[name] = available - number
        if self.counts[name] == 0:
            del self.counts[name]

    def most_common(self, limit=3):
        pairs = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return [name for name, _ in pairs[:limit]]


def merge(first, second):
    result = Inventory(first.counts)
    for name, number in second.counts.items():
        result.add(name, number)
    return result


if __name__ == "__main__":
    shelf = Inventory({"apple": 3, "pear": 1})
    shelf.add("plum", 5)
    shelf.take("pear")
    print(shelf.most_common())
'''

GERMAN = """\
Der kleine Bahnhof liegt am Rand des Dorfes, dort, wo die Felder beginnen. Früher hielten hier am Tag zwölf Züge, \
heute sind es noch vier. Im Warteraum steht ein alter Ofen, den niemand mehr heizt, und an der Wand hängt eine Uhr, \
die seit vielen Jahren auf zehn nach drei zeigt. Trotzdem kommen jeden Morgen dieselben Leute: eine Lehrerin, zwei \
Schüler und ein Mann mit einem Hund, der den Zug nie nimmt, sondern nur zusieht, wie er abfährt.

Im Sommer hat ein junges Paar das Gebäude gekauft. Sie wollen unten eine Werkstatt für Fahrräder einrichten und oben \
wohnen. Das Dach ist undicht, die Fenster müssen erneuert werden, und im Keller steht nach jedem Regen das Wasser. \
Die Nachbarn halten die beiden für mutig, manche auch für verrückt. Aber seit sie da sind, brennt abends wieder Licht, \
und wer auf den letzten Zug wartet, bekommt manchmal eine Tasse Tee. Die Uhr wollen sie nicht reparieren lassen. \
Zweimal am Tag, sagen sie, geht sie ja genau richtig.
"""

TEXTS: dict[TextName, str] = {
    "prose": FORGETTING_TEXT,
    "news": NEWS,
    "dialogue": DIALOGUE,
    "code": CODE,
    "german": GERMAN,
}
