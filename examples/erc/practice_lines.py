"""The sentences of the practice corpus, all made up for it. No two splits share one.

EVENTS: what is reported, by the kind of event. AMBIGUOUS: replies that fit any emotion; who says them and about what
decides. OVERT: replies whose words give the emotion away. {name}, {place} and {day} are filled in.
"""

NAMES = ("Bruno", "Clara", "Dev", "Elif", "Farid", "Greta", "Hana", "Igor", "Jonas", "Kira", "Luca", "Mina")
PLACES = ("the library", "the bakery", "the boathouse", "the workshop", "the school", "the office", "the market",
          "the theatre", "the garden centre", "the clinic", "the cellar", "the old mill")  # fmt: skip
DAYS = ("today", "this morning", "on Monday", "last night", "on Friday", "an hour ago", "at lunch", "over the weekend")

EVENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "windfall": (
            "{name} won first prize with the cake from {place}.",
            "They gave {name} the job at {place} {day}.",
            "We sold every ticket for the show at {place}.",
            "The scholarship came through for {name} {day}.",
            "{name} found the ring we had lost near {place}.",
            "The landlord lowered the rent for {place} {day}.",
            "{name} passed the exam with the best mark of all.",
            "The doctors say {name} is completely healthy again.",
        ),
        "bereft": (
            "{name} passed away {day}.",
            "The old dog died in {place} {day}.",
            "{name} is moving abroad and will not come back.",
            "They tore down {place} where we grew up.",
            "{name} and her husband separated {day}.",
            "All the letters from grandmother were lost in {place}.",
            "{name} did not make it through the operation.",
            "The choir at {place} sang for the very last time {day}.",
        ),
        "slight": (
            "{name} took the credit for our work at {place}.",
            "Somebody keyed the car in front of {place} {day}.",
            "{name} read my diary aloud at {place}.",
            "They promised us the room and gave it to {name}.",
            "{name} lied about us to everyone at {place}.",
            "The manager shouted at {name} for a mistake that was his own.",
            "{name} broke the agreement behind our backs {day}.",
            "They charged us twice at {place} and refused to pay it back.",
        ),
        "peril": (
            "There is smoke coming out of {place}.",
            "Somebody followed {name} home from {place} {day}.",
            "The brakes failed on the hill behind {place}.",
            "The river is about to flood {place}.",
            "{name} heard footsteps upstairs in {place}, and nobody lives there.",
            "The storm is heading straight for {place}.",
            "A stranger with a knife was seen near {place} {day}.",
            "{name} fell through the ice and is still out there.",
        ),
        "filth": (
            "There were maggots in the soup at {place}.",
            "{name} has not washed the towels in {place} since spring.",
            "A rat ran across the kitchen of {place} {day}.",
            "The drain under {place} burst and it came up the stairs.",
            "{name} spat on the floor of {place}.",
            "Mould is growing over the bread from {place}.",
            "{name} ate the leftovers out of the bin behind {place}.",
            "The cat was sick on the sofa in {place} {day}.",
        ),
        "twist": (
            "{name} turned out to be my cousin.",
            "They found a second front door behind the wall of {place}.",
            "{name} quit {day} to become a magician.",
            "It snowed on {place} in the middle of July.",
            "The quiet woman from {place} is a famous author.",
            "{name} got married {day} without telling anybody.",
            "A letter posted thirty years ago arrived at {place} {day}.",
            "{name} speaks nine languages, it seems.",
        ),
        "routine": (
            "{name} put the chairs back in {place} {day}.",
            "The bus to {place} leaves at ten past.",
            "{name} sent the minutes of the meeting {day}.",
            "We need more paper for the printer at {place}.",
            "The delivery for {place} comes on Thursday, as always.",
            "{name} has the keys to {place} until noon.",
            "I wrote the opening hours of {place} on the door.",
            "The form for {place} has three pages.",
        ),
    },
    "dev": {
        "windfall": (
            "{name} was promoted {day}, with a raise.",
            "The bank cancelled the debt on {place}.",
            "{name}'s painting sold for a fortune {day}.",
            "Our team came first in the race past {place}.",
        ),
        "bereft": (
            "The funeral for {name} is at {place}.",
            "{name} lost the baby {day}.",
            "After forty years {place} closed for good {day}.",
            "{name} no longer remembers who we are.",
        ),
        "slight": (
            "{name} copied my design and called it his own {day}.",
            "The people at {place} laughed in {name}'s face.",
            "Someone at {place} stole the money we had collected.",
            "{name} cancelled on us for the third time {day}.",
        ),
        "peril": (
            "The roof of {place} is cracking above our heads.",
            "{name} is trapped in {place} and the water is rising.",
            "There is a bomb warning for {place}.",
            "A wolf was standing in front of {place} {day}.",
        ),
        "filth": (
            "{name} clipped his toenails on the counter of {place}.",
            "Cockroaches crawled out of the coffee machine at {place}.",
            "The toilet in {place} overflowed {day}.",
            "There was hair baked into the pie from {place}.",
        ),
        "twist": (
            "{name} has a twin brother nobody knew about.",
            "The statue in front of {place} vanished {day}.",
            "{name} showed up {day} after ten years without a word.",
            "It turns out that {place} belongs to {name}.",
        ),
        "routine": (
            "The meeting in {place} starts at nine.",
            "{name} filled in the timetable {day}.",
            "There is a new bin next to {place}.",
            "{name} is buying milk on the way to {place}.",
        ),
    },
    "test": {
        "windfall": (
            "{name} got the grant for {place} {day}.",
            "The lost child was found safe at {place} {day}.",
            "{name} won a trip around the world.",
            "Every seat in {place} was taken and they cheered for us.",
        ),
        "bereft": (
            "{name} died in her sleep {day}.",
            "The fire left nothing of {place} and all our photographs.",
            "{name} said goodbye to the children for the last time {day}.",
            "The vet could not save the horse {day}.",
        ),
        "slight": (
            "{name} told our secret to everybody at {place}.",
            "They threw us out of {place} without a reason {day}.",
            "{name} cheated and was given the prize anyway.",
            "Somebody at {place} let the air out of my tyres {day}.",
        ),
        "peril": (
            "The gas line under {place} is leaking.",
            "{name} climbed onto the ledge of {place} and slipped.",
            "Someone is trying to break the door of {place} open.",
            "The plane with {name} on board lost an engine.",
        ),
        "filth": (
            "{name} sneezed into the salad at {place}.",
            "A dead pigeon was floating in the water tank of {place}.",
            "The fridge in {place} was left open for a month and it leaked.",
            "{name} wore the same socks all summer and left them in {place}.",
        ),
        "twist": (
            "{name} was a spy all along.",
            "They dug up a whale's skeleton underneath {place}.",
            "{name} changed her name {day} and shaved her head.",
            "The mayor danced on the roof of {place} {day}.",
        ),
        "routine": (
            "{name} parked the van behind {place}.",
            "The invoice from {place} arrived {day}.",
            "{name} is watering the plants in {place} this week.",
            "They moved the noticeboard in {place} a little to the left.",
        ),
    },
}

AMBIGUOUS: dict[str, tuple[str, ...]] = {
    "train": (
        "Well, there it is.", "So that is how it is.", "I heard.", "Say that again.", "You are telling me this now?",
        "Of course.", "And here we are.", "Just like that.", "I knew it.", "Give me a moment.", "Oh.",
        "That is something.", "Is that so?", "I have no words.", "Look at that.", "What did you expect?",
    ),
    "dev": (
        "So it happened.", "Right.", "Are you sure?", "I see.", "That had to come.", "Let me sit down.", "Huh.",
        "Tell me everything.",
    ),
    "test": (
        "There we have it.", "Really now.", "Go on.", "So be it.", "You mean it?", "I thought as much.", "Hm.",
        "Let that sink in.",
    ),
}  # fmt: skip

OVERT: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "neutral": (
            "I will write it down.", "The meeting is in {place}, I think.", "It takes about ten minutes to {place}.",
            "We can talk about it {day}.", "My bag is next to the door.", "{name} usually sits over there.",
            "That is the number of {place}.", "I take mine without sugar.",
        ),
        "joy": (
            "This is the best news in ages!", "I could hug you all!", "Let us celebrate at {place}!",
            "I am so happy for {name}!", "Hurray, drinks are on me!", "What a wonderful day!",
            "I have been smiling since I heard.", "That makes me so proud!",
        ),
        "surprise": (
            "Wait, what? Since when?", "I never would have guessed that!", "You have got to be kidding!",
            "{name}? Of all people?", "My jaw is on the floor!", "How on earth is that possible?",
            "That came out of nowhere!", "Pinch me, is this real?",
        ),
        "anger": (
            "How dare they!", "I am sick of being treated like this!", "Get out of my sight!",
            "{name} will pay for that!", "That is an outrage!", "I could smash something!",
            "Never do that to me again!", "Who do they think they are?",
        ),
        "sadness": (
            "I miss them so much already.", "I cannot stop crying.", "Nothing will be the same now.",
            "Poor {name}, my heart is heavy.", "I feel so empty.", "Leave me alone for a while, please.",
            "It hurts more than I thought.", "I wish I had said goodbye.",
        ),
        "disgust": (
            "That turns my stomach.", "Ew, keep it away from me.", "I need to wash my hands.",
            "That is revolting.", "How can {name} live like that, yuck.", "I think I am going to be sick.",
        ),
        "fear": (
            "I am scared, let us leave.", "My hands are shaking.", "What if it gets us too?",
            "Please do not make me go to {place}.", "I will not sleep tonight.", "Lock the door, quickly!",
        ),
    },
    "dev": {
        "neutral": ("The list is on the table.", "{name} comes by {day}, I believe.",
                    "It is the second door on the left.", "We have two of those in {place}."),
        "joy": ("I am over the moon!", "Oh, how lovely for {name}!", "Let me dance!", "That made my whole week!"),
        "surprise": ("No way, I do not believe it!", "Hold on, {name} did that?", "That is the last thing I expected!"),
        "anger": ("That makes my blood boil!", "They have no right to do that!", "I am furious with {name}!"),
        "sadness": ("My heart is broken.", "I feel like crying.", "It will be so lonely without {name}."),
        "disgust": ("That is so gross.", "The smell alone makes me retch."),
        "fear": ("I am terrified.", "I do not dare to move."),
    },
    "test": {
        "neutral": ("I left the papers in {place}.", "We start with page four.", "{name} prefers the window seat.",
                    "The train is at half past six."),
        "joy": ("Fantastic, I am thrilled!", "I am bursting with happiness!", "Good for {name}, how delightful!",
                "This calls for champagne!"),
        "surprise": ("You are pulling my leg!", "Since when does {name} do that?", "I am speechless!"),
        "anger": ("This is an insult, I will not stand for it!", "I hate {name} for that!",
                  "Enough, I have had it with them!"),
        "sadness": ("I am so sorry, I can hardly breathe for grief.", "I have been in tears all day.",
                    "Everything feels grey without {name}."),
        "disgust": ("Yuck, how nasty.", "I will never eat there again, it is foul."),
        "fear": ("I am frightened to death.", "Something terrible is going to happen, I feel it."),
    },
}  # fmt: skip
