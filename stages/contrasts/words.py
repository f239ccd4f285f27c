"""Words that more than one kind of pair is made of; none is the beginning of another."""

NAMES = (
    "Anna", "Peter", "Tom", "Lucy", "David", "Emma", "Paul", "Sarah", "James", "Laura", "Simon", "Julia", "Mark",
    "Alice", "Robert", "Helen", "Daniel", "Clara", "Kevin", "Nina", "Oscar", "Ruth", "Victor", "Maria", "George",
    "Sophie", "Henry", "Linda", "Frank", "Rachel", "Adam", "Diana", "Edward", "Grace", "Walter", "Irene",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = {
    "teacher": "teachers", "lawyer": "lawyers", "doctor": "doctors", "farmer": "farmers", "child": "children",
    "man": "men", "woman": "women", "student": "students", "baker": "bakers", "driver": "drivers", "singer": "singers",
    "painter": "painters", "nurse": "nurses", "guard": "guards", "clerk": "clerks", "pilot": "pilots",
    "judge": "judges", "sailor": "sailors", "actor": "actors", "writer": "writers", "boy": "boys", "girl": "girls",
}  # fmt: skip
THINGS = {
    "cup": "cups", "book": "books", "chair": "chairs", "key": "keys", "box": "boxes", "knife": "knives",
    "lamp": "lamps", "bottle": "bottles", "table": "tables", "shelf": "shelves", "brush": "brushes",
    "picture": "pictures", "basket": "baskets", "candle": "candles", "ladder": "ladders", "clock": "clocks",
    "mirror": "mirrors", "glass": "glasses", "spoon": "spoons", "bicycle": "bicycles", "letter": "letters",
    "stone": "stones", "coat": "coats", "drum": "drums", "plate": "plates", "leaf": "leaves", "watch": "watches",
    "bench": "benches",
}  # fmt: skip
"""Singular → plural."""
