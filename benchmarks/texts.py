"""Texts of different kinds on which `accuracy.py` compares arithmetics; their lengths are 60 to 300 tokens."""

from __future__ import annotations

CHAT = """<|im_start|>system
You are a patient assistant who answers questions about cooking.<|im_end|>
<|im_start|>user
My bread never rises properly. I use dry yeast, lukewarm water and leave the dough for an hour. What am I \
doing wrong?<|im_end|>
<|im_start|>assistant
There are a few likely reasons. First, check the date on the yeast: old yeast loses its strength even when the packet is
closed. Second, the water may be too hot; anything above 50 degrees kills the yeast. Third, one hour is short in a cold
kitchen. Let the dough stand until it has doubled in size, however long that takes. Finally, too much salt right next to
the yeast slows it down, so mix the salt into the flour first.<|im_end|>
<|im_start|>user
And how do I know that it has doubled?<|im_end|>
<|im_start|>assistant
"""

CODE = '''import heapq
from collections import defaultdict


def shortest_paths(edges, start):
    """Dijkstra's algorithm on a list of (from, to, weight); returns a dict of distances."""
    graph = defaultdict(list)
    for a, b, weight in edges:
        if weight < 0:
            raise ValueError(f"negative weight between {a} and {b}")
        graph[a].append((b, weight))
    distances = {start: 0}
    queue = [(0, start)]
    while queue:
        distance, node = heapq.heappop(queue)
        if distance > distances[node]:
            continue
        for neighbour, weight in graph[node]:
            candidate = distance + weight
            if candidate < distances.get(neighbour, float("inf")):
                distances[neighbour] = candidate
                heapq.heappush(queue, (candidate, neighbour))
    return distances
'''

JSON = """{
  "order": {
    "id": "A-20417",
    "placed_at": "2024-03-18T09:42:11Z",
    "customer": {"name": "Maria Keller", "email": "maria.keller@example.com", "vip": false},
    "lines": [
      {"sku": "LMP-0031", "title": "Desk lamp", "quantity": 2, "unit_price": 24.9, "tags": ["office", "light"]},
      {"sku": "CHR-1120", "title": "Swivel chair", "quantity": 1, "unit_price": 189.0, "tags": ["office"]},
      {"sku": "PAP-0007", "title": "Paper, A4, 500 sheets", "quantity": 10, "unit_price": 4.35, "tags": []}
    ],
    "shipping": {"method": "standard", "address": {"street": "Gartenweg 7", "city": "Bern", "zip": "3011"}},
    "total": 282.3
  }
}
"""

GERMAN = """Am frühen Morgen lag dichter Nebel über dem Fluss, und nur die Spitze des Kirchturms ragte aus \
dem Grau heraus.
Der alte Fährmann kannte das Ufer so gut, dass er auch ohne Sicht hinüberfand. Seit vierzig Jahren brachte er Menschen,
Fahrräder und manchmal eine Ziege von einer Seite auf die andere. Die neue Brücke, die man weiter oben baute, \
würde seine
Arbeit überflüssig machen; doch darüber sprach er nicht gern. Stattdessen erzählte er von den Hochwassern \
früherer Jahre.
"""

NUMBERS = """Monthly rainfall in millimetres, station 4471
Jan 61.2  Feb 48.7  Mar 55.0  Apr 70.9  May 92.4  Jun 110.3
Jul 118.8  Aug 104.1  Sep 83.6  Oct 69.9  Nov 72.5  Dec 66.1
Sum: 953.5  Mean: 79.5
Powers of two: 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536
Squares: 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225
"""

LIST = """# Packing list for a week in the mountains

1. Clothes
   - two pairs of trousers, one of them waterproof
   - a warm jacket and a thin one
   - five pairs of socks
2. Equipment
   - map and compass
   - head torch with spare batteries
   - first-aid kit
3. Food
   - oats, rice, lentils
   - nuts and dried fruit
   - tea, salt, oil
4. Documents
   - identity card
   - insurance card
"""

STORY = """The lighthouse keeper had a rule: nobody was to touch the lamp but him. So when his daughter found \
it dark one
evening in November, with a storm coming up from the south-west and the fishing boats still out, she stood before it for
a long time before she dared to reach for the matches. The first one broke. The second went out. With the third she lit
the wick, and the great lens threw its beam across the water as it had done on every night of her life. It was only then
that she went to look for her father."""

SCIENCE = """Abstract. We measure the thermal conductivity of thin silicon membranes between 20 K and 300 K. \
For a thickness
of 9 nm the conductivity at room temperature is (9 ± 2) W/(m K), about a sixteenth of the bulk value. The results are
well described by a model in which phonons are scattered diffusely at the surfaces (specularity p < 0.1), without any
free parameter besides the roughness, which was measured independently by atomic force microscopy."""

TEXTS = {
    "chat": CHAT,
    "code": CODE,
    "JSON": JSON,
    "German": GERMAN,
    "numbers": NUMBERS,
    "list": LIST,
    "story": STORY,
    "science": SCIENCE,
}
