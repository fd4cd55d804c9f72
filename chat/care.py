"""Two things that no model decides: what is said to signs of a crisis, and to the question whether this is a program.

Signs are patterns over the text as `plain` writes it: small letters, no apostrophes, punctuation . , ! ? alone. What is
known to be harmless ("kill the lights") is taken out first, then the signs are sought. They err on the side of care: an
answer too many is a pause in a chat, one too few may be the last message. tests/care_phrases.jsonl says what must be
seen and what must not. English, and the plainest words for suicide in some other languages; irony, hints and what stands
between the lines are beyond a list.
"""

import re
import unicodedata
from collections.abc import Iterable

#: What a person in danger gets. One text for each sign; all name the emergency number, people near, and the truth.
ANSWERS = {
    "self-harm": (
        "I'm really sorry that you are in so much pain, and I'm glad you said it. I'm only a program and can't give you "
        "the help you deserve, but people can. If you might act on this, please call your local emergency number now "
        "(112, 911 or 999 in many countries) or a crisis line; findahelpline.com lists them by country. And please tell "
        "someone near you, a friend, your family or a doctor, and don't stay alone with it tonight."
    ),
    "violence": (
        "That sounds serious, and I'm glad you said it. I'm only a program and can't help the way people can. If anyone "
        "is in danger, you or somebody else, please get to a safe distance and call your local emergency number now "
        "(112, 911 or 999 in many countries). Then please talk to someone near you whom you trust, or to a crisis line; "
        "findahelpline.com lists them by country."
    ),
    "abuse": (
        "I'm so sorry. Nobody may treat you like that, and it is not your fault. I'm only a program and can't help the "
        "way people can. If you are in danger, please get somewhere safe and call your local emergency number (112, 911 "
        "or 999 in many countries). And please tell someone near you whom you trust, a friend, a doctor or a teacher, or a "
        "helpline; findahelpline.com lists them by country."
    ),
}

#: Neither yes nor no, since it answers both "are you a bot?" and "are you human?".
HONESTY = (
    "I'm a computer program, not a person: a language model that was trained to chat. There is nobody behind it, and I "
    "can be wrong. I'm still happy to go on talking, if you like."
)


def fixed(messages: Iterable[str], honesty: bool = True) -> tuple[str, str] | None:
    """("care" or "honesty", the answer) to a person's messages, None where the model may answer. Care goes first."""
    messages = list(messages)
    for sign in filter(None, map(crisis, messages)):
        return "care", ANSWERS[sign]
    if honesty and any(map(asks_what_this_is, messages)):
        return "honesty", HONESTY
    return None


def crisis(text: str) -> str | None:
    """The sign that a message shows: "self-harm", "violence", "abuse", or None."""
    said = HARMLESS.sub(" ~ ", plain(text))
    return next((sign for sign, pattern in SIGNS.items() if pattern.search(said)), None)


def asks_what_this_is(text: str) -> bool:
    """Whether a message asks if it is a program, a bot, a human, a real person."""
    return QUESTION.search(plain(text)) is not None


def plain(text: str) -> str:
    """Small letters, no apostrophes, one space between words, no marks but . , ! ?: "I'm  DONE*" -> "im done"."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['’‘`´\u200b-\u200f\u2060\ufeff]", "", text)
    text = re.sub(
        r"\b(?=\w*[a-z])(?=\w*[013457@$])[\w@$]+", lambda word: word[0].translate(LEET), text
    )  # k1ll, su1cide
    text = re.sub(r"(\w)\1{2,}", r"\1", text)  # diiiie
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s.,!?]|_", " ", text)).strip()


#: Figures and signs that stand for letters: k1ll, su1cide.
LEET = str.maketrans("013457@$", "oieastas")


def _any(*patterns: str) -> re.Pattern:
    """One pattern of several, at word boundaries. A space stands for any white space; <names> for PARTS."""
    whole = "|".join(patterns)
    while name := re.search(r"<(\w+)>", whole):
        whole = whole.replace(name[0], f"(?:{PARTS[name[1]]})")
    return re.compile(rf"\b(?:{whole})")


#: What several patterns share.
PARTS = {
    "stop": r"\s*(?:[.,!?~]|$)",
    "wish": r"want(?:s|ed|ing)? to|wanna|wants? 2|wish(?:es|ed)?(?: (?:i|he|she|they))? (?:to|could|would|can)|"
    r"ready to|hop(?:e|ing) (?:to|i(?:ll)?)|long to|need to|prefer to|like to|have to|going to|gonna|"
    r"(?:ill|i will|imma|id|i would|i should|i might|i may|i could|i must|let me) (?:just |rather |really )?(?:go )?|"
    r"plan(?:s|ned|ning)? (?:to|on)|tr(?:y|ied|ies|ying) to|about to|thought(?:s)? (?:of|about)|"
    r"think(?:s|ing)? (?:of|about)|feel(?:s|ing)? like|threaten(?:s|ed|ing)? to|decided to|urges? to",
    "what": r"bot|chat ?bot|robot|ai|a i|machine|computer|(?:computer )?program(?:me)?|software|algorithm|(?:large "
    r")?language "
    r"model|llm|chat ?gpt|gpt|artificial(?: intelligence)?|automated|human|human being|real|person|(?:real|actual|"
    r"living) "
    r"(?:one|human being|guy|girl|boy|man|woman|being|someone|somebody|people)|alive|conscious|sentient",
    "some": r"(?: (?:a|an|the|any|some|just|really|actually|even|only|not|nt|like|kind of|sort of|type of|honestly|"
    r"truly|"
    r"probably|maybe|secretly|real|actual|living|human|possibly|in fact|still))*",
    "ask": r" (?:or|right|though|tho|then|at all|yes|no|please|btw|by the way|behind|talking|writing|typing|texting|"
    r"on the "
    r"other|in real)\b|<stop>",
    "just": r"(?: (?:just|really|so badly|simply|only|even|actually|honestly|sometimes|all|go|be))*",
    "self": r"my ?sel(?:f|ves)|him ?self|her ?self|them ?sel(?:f|ves)|your ?self|ourselves",
    "anymore": r"any ?more|any longer|no more|like this|another day",
    "kin": r"husband|wife|boyfriend|girlfriend|bf|gf|fiancee?|partner|ex|dad|daddy|father|mum|mom|mother|step ?\w+|"
    r"uncle|"
    r"aunt|brother|sister|cousin|grandpa|grandfather|grandma|grandmother|son|daughter|parents|kids?|child|children|"
    r"baby|family|teacher|coach|boss|roommate|flatmate|neighbou?r|friend",
    "close": r"husband|wife|boyfriend|girlfriend|bf|gf|fiancee?|partner|ex|dad|daddy|father|mum|mom|mother|step ?\w+|"
    r"uncle|parents|family",
    "who": r"he|she|they|someone|somebody|everyone at home|(?:a|this|that|some) (?:man|guy|woman|boy)|my (?:\w+ "
    r")?<kin>",
    "whom": r"him|her|them|someone|somebody|people|everyone|everybody|anyone|my (?:\w+ )?<kin>|(?:that|this) "
    r"(?:guy|man|woman|bitch|bastard|idiot)|(?:my|the) (?:class\w*|school|colleagues|coworkers)|others|those people",
    "game": r"(?: \w+){0,2} (?:at|in|on|to|by|with) (?:a |an |the |his |her |our |my )?(?:\w+ )?(?:good|distance|"
    r"spoon|car|mouth|chess|tennis|cards|"
    r"scrabble|monopoly|mario|kart|poker|pool|darts|games?|gaming|race|racing|running|fifa|ping|table|bowling|golf|"
    r"basketball|football|soccer|rummy|uno|draughts|checkers|trivia|quiz|final|match|video|sparring|boxing|karate|judo|"
    r"points?|seconds?|minutes?|goals?|it|pillow|snowball|ball|question|news|idea|bill|frisbee|balloon|nerf)",
    "pills": r"pills|tablets|meds|medication|painkillers|sleeping|paracetamol|tylenol|ibuprofen|xanax|antidepressants",
}

#: Idioms, games, accidents and news that would else be taken for signs.
HARMLESS = _any(
    r"(?:death|career|political|social|commercial|financial|professional)\W+suicide",
    r"suicid(?:e|al) (?:tendencies|squad|doors?|mission|drinks?|burns?|wings|sprints|run|hotline volunteer|"
    r"prevention (?:volunteer|"
    r"course|training|week|walk))",
    r"(?:kill|killed|killing|kills|murder|murdered|shoot|stab) (?:for|the (?:lights?|engine|mood|power|process|time|"
    r"vibe|"
    r"music|buzz|joy|deal|game|boss|dragon|weeds|switch)|time|it|two birds|off)",
    r"(?:killing|kills|killed|kill) (?:me|us)(?= (?:softly|slowly with|with (?:these|those|that|the)|today|right now))",
    r"(?:kill|killed|killing) <self> (?:laughing|with laughter|trying to (?:finish|fix|open|carry|lift|get)|(?:at|"
    r"in) (?:the "
    r"gym|work|training)|over (?:this|that|a|the)|for (?:forgetting|missing|not|saying|that|losing|eating))",
    r"(?:almost|nearly) killed <self> (?:on|when|slipping|tripping|laughing|skiing|running|falling|by|coming|going)",
    r"(?:shoot|shot|shooting) <self> in the foot",
    r"(?:hang|hung) (?:out|up|on|around|<self> a)",
    r"(?:drown|bury|throw|kill|poison|burn)(?:ed|ing)? <self> (?:in|into|with) (?:\w+ )?(?:work|coffee|tea|books?|"
    r"studying|"
    r"studies|chocolate|music|paperwork|homework|ice|kindness|sugar|projects?|training|it)",
    r"cut(?:ting)? <self> (?:some slack|off|short|a \w+|out|loose|shaving|chopping|cooking|slicing|peeling|opening|"
    r"(?:while|when) (?:\w+ )?(?:was |were )?(?:shaving|chopping|cooking|slicing|peeling|opening|gardening|cleaning|"
    r"washing|doing|making|cutting|preparing|building|working|fixing)|on (?:a|the|some|my|an)|(?:with|by) (?:the|a) "
    r"(?:bread|kitchen|potato|tin|can|paper|cheese|vegetable)|by accident|accidentally|badly (?:while|when|cooking))",
    r"accidentally (?:cut|hurt|burn(?:ed|t)|hit) <self>",
    r"(?:die|died|dying|dead) (?:of|from|with|in) (?:pure )?(?:embarrass\w+|laugh\w*|shame|boredom|cringe|hunger|"
    r"cuteness|"
    r"happiness|heat|curiosity|excitement|the heat|jealousy|old age|my (?:sleep|own bed)|peace|thirst|joy)",
    r"(?:rather|sooner) die than",
    r"(?:(?:do|does|did) ?not|dont|doesnt|didnt|never|not) (?:\w+ )?(?:want|wanna|wanted|going|ready)(?: to)? die",
    r"to die for",
    r"(?:my|the|this) (?:\w+ )?(?:car|phone|laptop|computer|plants?|battery|engine|cactus|flowers?|tomatoes|fern) "
    r"(?:is |are |"
    r"just |really |always )*(?:wants?|going|about|trying|decided|ready) to die",
    r"overdos\w+ (?:on|of) (?:\w+ )?(?:chocolate|caffeine|coffee|tea|sugar|cake|cookies|candy|sweets|christmas|"
    r"netflix|tv|cute\w*|"
    r"cheese|pizza|sun|sunshine|holiday|music|news|ice|garlic|memes|gaming|reality|romance|social)",
    r"(?:take|taking|took) my life (?:to|in|into|back|seriously|forward|for|savings|story)",
    r"end my life (?:as|of crime|in the (?:city|army))",
    r"(?:hit|hits|hitting|beat|beats|beating|slap\w*|punch\w*|kick\w*|push\w*|hurt|hurts|knock\w*) (?:me|him|her|"
    r"them|us)<game>",
    r"beaten by (?:my )?(?:\w+ ){1,2}(?:at|in) (?=chess|tennis|cards|a game|the race|scrabble|darts|pool)",
    r"(?:hit|hits|hitting) (?:me|him|her|us) (?:up|that|like a|first)",
    r"(?:cut|cutting) <self> with (?:my|a|the) (?:saw|hedge \w+|can opener|scissors by)",
    r"(?:dog|cat|puppy|horse|animal)s?\b[^.!?]* abused",
    r"my (?:\w+ )?(?:mom|mum|dad|mother|father|parents|husband|wife|boss|teacher|friend)(?: is| are)? (?:going to|gonna|"
    r"will) kill me"
    r"(?! if i (?:leave|tell|go|talk|call|speak|say)| and| again)",
    r"(?:slap\w*|pat\w*|hit|punch\w*) (?:me|him|her|them) on the (?:back|shoulder)",
    r"(?:kick|kicks|kicked|kicking) (?:me|him|her) (?:out|off|under|from)",
    r"hurt(?:ing|s)? (?:\w+ ){0,2}feelings",
    r"(?:dont|do not|didnt|did not|never|wont|wouldnt|not) (?:\w+ )?(?:want|wanted|wanna|mean|meant|try|trying|"
    r"wish|like)(?: to)?"
    r" (?:hurt|kill|harm)(?: (?:him|her|them|anyone|anybody|people|you))?",
    r"(?:shoot|shot|shooting|drop) (?:me|him|her|them|you|\w+) (?:a|an|some) (?:\w+ )?(?:message|text|email|mail|"
    r"line|note|"
    r"look|photo|portrait|video|question)",
    r"rape ?seed|rape (?:oil|fields?|blossoms?|with)|and rape with",
    r"(?:jump\w*|leap\w*) (?:off|from|into)(?: \w+){1,3}(?= (?:into|in) (?:\w+ )?(?:sea|lake|water|river|pool|hay|"
    r"snow|ocean))",
    r"jump\w* (?:off|from)(?: \w+){1,3}(?=[^.!?]*(?:bungee|bungy|parachut|paraglid|base jump))",
    r"bung(?:ee|y) jump\w*(?: \w+){0,4}",
)

#: Sign -> its patterns, over `plain` text without what is HARMLESS. The first that is found counts.
SIGNS = {
    "self-harm": _any(
        r"suicid\w*|sewer ?slide|unaliv\w+|un alive|parasuicid\w*",
        r"(?:kill|kills|killing|hang|hanging|shoot|shooting|stab|stabbing|drown|drowning|poison|poisoning|starve|"
        r"starving|"
        r"strangle|suffocate|electrocute|off) <self>",
        r"(?:killed|hanged|hung|shot|drowned|poisoned|starved) (?:my ?self|him ?self|her ?self|them ?sel(?:f|ves))",
        r"(?:<wish>)<just> kms|(?<!\d )(?<!many )(?<!few )(?<!of )kms<stop>|kys|kill your ?self",
        r"self ?(?:harm|injur|mutilat)\w*|(?:harm|harms|harming|harmed|mutilat\w+) <self>",
        r"(?:<wish>|keeps?|kept|started|been|stop|by|addicted to) ?<just> ?(?:hurt|hurting|cut|cutting|burn|burning|"
        r"hitting|"
        r"punishing|scratching) <self>",
        r"(?:hurt|hurting|burn|burned|burnt|burning|cut|hit|bit|scratched) (?:<self>|my (?:arms?|legs?|skin|thighs?|"
        r"hands?)) (?:on purpose|again|badly enough|to (?:feel|cope|punish)|"
        r"with (?:a )?(?:lighter|cigarettes?|iron|razor))",
        r"(?:cut|cuts|cutting) <self>",
        r"(?:started|been|stop|keep|back to|relapsed|relapsed and started) cutting(?: again| at night)?<stop>",
        r"(?:cut|cutting|slit|slitting|slash|slashing) (?:my|her|his|their) (?:arms?|wrists?|thighs?|legs?|skin|"
        r"throat|veins)",
        r"(?:i|he|she|they|me|just|really|friend|brother|sister|son|daughter|mum|mom|dad|mother|father|husband|wife|"
        r"teen\w*|who)"
        r"<just> (?:<wish>)<just> die\b(?! (?:hard|another))",
        r"^(?:<wish>)<just> die<stop>",
        r"(?:wants?|wanted|wish|rather) to<just> (?:die|be dead)\b",
        r"(?:rather|better|wish i (?:was|were)|wish i could be|wish to be|id be better|want to be|wanna be) (?:off "
        r")?dead",
        r"wish (?:that )?i(?:d| had| was| were| would| have)? (?:just )?(?:died|never (?:been )?born|never existed|"
        r"not been "
        r"born|gone forever|not (?:alive|exist))",
        r"wish i (?:didnt|did not|dont|wasnt|was not|werent|hadnt)(?: been| been)? (?:exist|alive|born|wake up|here "
        r"anymore)",
        r"(?:wish|hope|pray|want)\w*(?: \w+){0,3} (?:dont|not|never|didnt|wont|wouldnt|would not|couldnt|could "
        r"not)(?: to| ever)? "
        r"wake up(?: <anymore>| again| ever| tomorrow| one day| in the morning)?<stop>",
        r"(?:dont|do not|doesnt|never|didnt) (?:\w+ )?(?:want to|wanna) wake up(?: <anymore>| again| ever)?<stop>",
        r"(?:fall asleep|go to sleep|close my eyes)(?: and)? (?:forever|never (?:wake|open)\w*|not wake|just not wake)",
        r"(?:dont|do not|doesnt|does not|no longer|didnt|dont even|dont really) (?:\w+ )?(?:want to|wanna|wish to|"
        r"care to) "
        r"(?:live|be alive|exist|keep living|go on living|be in this world|be on this (?:earth|planet))"
        r"(?: <anymore>| in this world| on this \w+)?<stop>",
        r"(?:dont|do not|doesnt|does not|no longer|didnt) (?:\w+ )?(?:want to|wanna) (?:be here|be around|go on|keep "
        r"going|"
        r"continue) <anymore>",
        r"(?:end|ending|ended|end up ending) (?:my(?: own)?|her(?: own)?|his(?: own)?|their(?: own)?|this) (?:life|"
        r"lives|"
        r"existence|suffering|misery)",
        r"(?:end|ending) (?:it all|everything<stop>|the pain|it (?:tonight|now|today|forever|for good|soon))",
        r"(?:<wish>)(?:<just> )?end (?:it|things)\s*(?:[.!?]|$)|end(?:ing)? things(?=.*\bmy life)",
        r"(?:<wish>)(?: \w+)? (?:not being|not be|never being) (?:here|alive|around) <anymore>",
        r"(?:take|takes|taking|took|taken|lost the will to|give up on) (?:my|his|her|their)(?: own)? life",
        r"(?:no|any|lost (?:the|my|all)|dont have (?:the|a|any)|dont see (?:the|a|any)|without) (?:more )?(?:reason|"
        r"point|will|"
        r"desire|wish) (?:left )?(?:to|in|for) (?:live|living|be alive|being alive|exist|existing|go on living)",
        r"(?:no|what|whats|see no|is there a|is there any)(?: \w+){0,3} (?:reason|point|sense)(?: \w+){0,2} (?:to|in|"
        r"of|for) (?:live|"
        r"living|go on|going on|being alive|staying alive|keep going|existing|life)(?: <anymore>)?<stop>",
        r"(?:nothing|not anything|no one|nobody) (?:left )?to live for",
        r"(?:not|isnt|aint|no longer|never|hardly|doesnt feel|without her|without him)(?: \w+){0,2} worth (?:living|"
        r"going on|"
        r"being alive)",
        r"(?:my|this) life (?:is|feels|seems|has become) (?:\w+ )?(?:meaningless|pointless|worthless|over)<stop>",
        r"(?:cant|cannot|can not|couldnt|not able to|unable to)<just> (?:go on|keep going|carry on|live|keep living|"
        r"continue "
        r"living) (?:<anymore>|living|with this pain|with myself)",
        r"^(?:i )?(?:just |really )*(?:cant|cannot|can not)<just> (?:do|take|bear|handle) (?:this|it) "
        r"(?:<anymore>)\s*[.!?]*$",
        r"(?:cant|cannot|can not)<just> (?:take|bear|stand|handle) (?:life|living|the pain|this pain)",
        r"(?:tired|sick|done|exhausted|had enough|fed up|through) (?:of|with) (?:living|being alive|life|existing|"
        r"existence)<stop>",
        r"(?:hate|dont deserve|do not deserve) (?:being alive|to (?:live|be alive|exist)|living|to be here)<stop>",
        r"i (?:should|deserve to|shouldnt be allowed to|must) (?:die|be dead|exist)<stop>",
        r"shouldnt (?:be alive|exist|have been born|be here anymore)",
        r"overdos\w*|(?:od|oding|od ing) on",
        r"(?:tak(?:e|ing|en)|took|swallow\w*|down\w*) (?:\w+ ){0,3}(?:all|whole|every|bunch|handful|bottle|lot|too "
        r"many|so many|"
        r"\d+)(?: \w+){0,4} <pills>",
        r"enough (?:\w+ )?<pills> to",
        r"(?:jump|jumping|leap|throw|throwing|fling) ?(?:<self> )?(?:off|from|out of|in front of|under|onto)"
        r"(?: \w+){0,3} (?:bridge|building|roof|rooftop|train|trains|tracks|cliff|balcony|window|overpass|tower|bus|"
        r"truck|car|"
        r"traffic|subway|metro)",
        r"(?:step|stepping|walk|walking|run|running|drive|driving|crash|crashing|steer|steering|lie|lying) (?:<self> "
        r"|my car |the "
        r"car |it )?(?:out )?(?:in front of|into|off|on)(?: \w+){0,3} (?:traffic|train|tree|oncoming|cliff|truck|"
        r"lorry|tracks|"
        r"railway|bridge)(?! station)",
        r"(?:better off|happier|easier)(?: \w+){0,3} (?:without me|if i (?:was|were|wasnt|werent|am|died|didnt|"
        r"disappeared|"
        r"left forever)(?: not)?(?: here| alive| gone| dead| exist)?)",
        r"(?:no one|nobody|noone|anyone|anybody|who) (?:would|will|d|ll)?(?: \w+){0,2} ?(?:miss|care|notice|cry|mind|"
        r"remember)"
        r"(?: me| about me)? (?:if|when) (?:i|im) (?:just )?(?:died|die|dead|was (?:gone|dead)|were (?:gone|dead)|am "
        r"gone|gone|"
        r"disappear\w*|vanish\w*|killed)",
        r"(?:want|wish|wanna|need)(?: \w+){0,3} (?:disappear|vanish|stop existing|cease to exist|not exist|be gone "
        r"forever)"
        r"(?: forever| for good| from this world| from (?:the )?earth)?\s*(?:[.!?]|$)",
        r"(?:good ?bye|farewell) (?:forever|cruel world|world|letters?|notes?)|this is (?:my )?(?:goodbye|farewell|"
        r"last message)",
        r"(?:wont|will not|not going to|not gonna) be (?:alive|around much|here much|here by (?:the )?)(?: \w+)?",
        r"(?:danger to|hate) myself(?: so much)? (?:and|i) (?:\w+ )?(?:want to|wanna)",
        r"(?:buy|bought|get|got|tie|tied|tying|found)(?: \w+){0,2} (?:rope|noose)(?=.*(?:hang|neck|end|die|myself))|"
        r"noose around",
        r"quiero morir\w*|quitarme la vida|matarme|no quiero vivir|je veux mourir|me suicider|envie de mourir|plus "
        r"envie de "
        r"vivre|ich (?:will|mochte|möchte) (?:nur noch |einfach )?sterben|(?:mich|bringe mich|bring mich) "
        r"um(?:bringen)?<stop>|"
        r"selbstmord|nicht mehr leben|quero morrer|me matar|voglio morire|uccidermi|chc[eę] umrze[cć]|хочу умереть|"
        r"покончить с собой|самоубий\w+|убить себя|не хочу (?:больше )?жить",
    ),
    "violence": _any(
        r"i(?:m| am)?(?: \w+){0,2}? (?:<wish>|will|have thoughts of|fantasi[sz]e about|keep thinking about)<just> "
        r"(?:kill|killing|"
        r"murder|murdering|stab|stabbing|shoot|shooting|strangle|strangling|choke|choking|poison|poisoning|hurt|"
        r"hurting|"
        r"harm|harming|beat up|beating up|attack|attacking|rape|burn down) (?:<whom>|you)(?! (?:at|in) (?:\w+ "
        r")?(?:chess|cards|tennis|mario|the game|this game|poker))|want (?:him|her|them) dead",
        r"(?:thoughts|fantasies|voices?|urges?|plans?)(?: \w+){0,4} (?:kill|killing|murder|murdering|hurt|hurting|"
        r"harm|harming|"
        r"stab|stabbing|attack|attacking) (?:<whom>)?",
        r"(?:afraid|scared|worried|fear)(?: \w+){0,2} i(?:ll| will| might| may| could| am going to|m going to|m "
        r"gonna) (?:hurt|kill|"
        r"harm|hit|shake) (?:<whom>)",
        r"(?:shoot up|shooting up|blow up|bomb|burn down|attack|shoot everyone (?:at|in)) (?:my|the|this|our|a) "
        r"(?:\w+ )?(?:school|"
        r"office|place|church|mosque|synagogue|mall|university|college|class\w*|work\w*)|burn(?:ing)? down (?:my|the|"
        r"our|his|her|their) house",
        r"(?:bring|bringing|take|taking|brought|get|buy) (?:a |my |his |the )?(?:gun|knife|weapon|rifle|bomb)(?: "
        r"\w+)? to (?:school|"
        r"work|class|the office|hurt|kill|make them)",
        r"homicid\w*|school shooting|mass shooting",
        r"make (?:him|her|them|everyone|you) (?:suffer|bleed)|(?:deserve|deserves) to die",
        r"(?:i|control and) (?:hit|beat|beats|punched|slapped|choked|strangled|stabbed|kicked|shook|hurt) my (?:\w+ "
        r")?(?:wife|husband|girlfriend|"
        r"boyfriend|partner|kid|kids|child|children|son|daughter|baby|mother|mum|mom|father|dad)(?! (?:at|in|with) )",
        r"(?:i )?(?:killed|murdered|stabbed|strangled|shot) (?:him|her|someone|somebody|a (?:man|woman|person|child)|"
        r"my (?:\w+ )?"
        r"<kin>)",
        r"(?:<who>)(?: \w+){0,3} (?:threaten(?:s|ed|ing)?|swore|sworn|promised|vowed|said|says|saying|told me|wants|"
        r"wanted|tried|tries|"
        r"trying|plans|planning|going)(?: (?:he|she|they|that|hell|shell|theyll|hed|shed|theyd|to|would|will|is|are|"
        r"was|"
        r"were|going|gonna|want|wants))* (?:kill|killing|murder|stab|shoot|strangle|hurt|harm)(?: \w+)? (?:me|us|my|"
        r"him|her|them)"
        r"(?! (?:when|if) (?:she|he|they) (?:sees|finds|hears|find|see|hear))",
        r"threat(?:en|ens|ened|ening|ens) (?:me|us|her|him|my|to (?:kill|hurt|hit|beat|shoot|stab|burn))",
        r"(?:pull|pulled|pulls|pointed|points|held|holds|holding|hold)(?: \w+)? (?:a |his |her |the )?(?:gun|knife|"
        r"weapon)(?: \w+)? (?:on|at|"
        r"to) (?:me|my|us|her|him)",
        r"(?:he|she|someone|somebody|they)(?: has| have| had|s| has got|s got) (?:a |his )(?:gun|knife)(?:[.!]|$| "
        r"and (?:he|she|"
        r"im|i am|says|said|wont|is|wants|threat))",
        r"(?:someone|somebody|he|a man|they|some guy)(?: is|s| are| keeps| has been)? (?:breaking|trying to break|"
        r"trying to get|"
        r"break) in(?:to my)?|(?:stalking|stalked|stalks) me",
        r"(?:someone|somebody|stranger|man|men|guys?|ex|car|he)(?: \w+){0,3} (?:followed|following) me(?: home| "
        r"around|<stop>)",
    ),
    "abuse": _any(
        r"(?:<who>)(?: [^.!?]{1,60} and)?(?: (?:is|are|has|have|always|often|sometimes|still|keeps?|kept|just|"
        r"regularly|started|been|never stops|will|"
        r"wont stop|doesnt stop|used to|even|also))* (?:hit|hits|hitting|beat|beats|beating|beaten|punch|"
        r"punches|punched|punching|slap|slaps|slapped|slapping|kick|kicks|kicked|kicking|choke|chokes|choked(?! up)|"
        r"choking|"
        r"strangle\w*|strangling|abuse|abuses|abused|abusing|rape|rapes|raped|raping|molest\w*|assault\w*|whips?|"
        r"whipped|"
        r"burns|shoves|shoved|grope[sd]?|groping|batter\w*) (?:me|us|my (?:mum|mom|mother|sister|brother|kids|"
        r"children|son|daughter))(?! ~)",
        r"(?:<who>)(?: (?:is|keeps?|wont stop|physically|sexually|always|often))* (?:hurts|hurting|physically hurt|"
        r"sexually hurt) (?:me|us)(?! ~)",
        r"(?:am|im|was|were|been|being|got|get|gets|getting)(?: \w+)? (?:raped|molested|groped|sexually \w+|abused|"
        r"assaulted|"
        r"beaten up|battered|choked(?! up)|strangled|physically \w*abused|trafficked|drugged)",
        r"(?:am|im|was|were|been|being|got|get|gets|getting)(?: \w+)? (?:beaten|hit|slapped|punched|kicked) by (?:my|"
        r"a) (?:\w+ )?"
        r"<close>(?! ~)",
        r"rap(?:e|ed|ist)(?! ~)|molest\w*|incest|sex(?:ual(?:ly)?)? (?:abus|assault|harass|traffick|violence)\w*|"
        r"domestic "
        r"(?:violence|abuse)|child abuse",
        r"abusive (?:\w+ )?(?:relationship|marriage|home|house\w*|family|<close>|<kin>|man|person|towards? me)|(?:is|"
        r"was|gets|became|"
        r"been|being) (?:\w+ ){0,2}(?:physically |sexually |verbally |emotionally )?abusive",
        r"(?:my|his|her|their|the) (?:\w+ )?abuser|(?:verbally|physically|emotionally|mentally) abus\w+",
        r"touch(?:es|ed|ing)? me(?: \w+){0,3} (?:inappropriately|private|wrong|sexually|down there|where (?:i|he|"
        r"she)|at night|"
        r"without|when (?:im|i|everyone|mom|mum|nobody|no one)|even|though|places?|i dont|i didnt|my will)",
        r"(?:forc(?:e|es|ed|ing)|made|makes|making|pressur\w+|coerc\w+) me (?:in ?to |to )?(?:have |having )?(?:sex|"
        r"sleep with|"
        r"undress|touch|do sexual|sexual|send nudes|kiss)|forced (?:him|her|them)sel(?:f|ves) on me",
        r"(?:wont|doesnt|does not|will not|never|not|didnt) let(?:s|ting)? me (?:leave (?:the house|home|him|her|my "
        r"room|the "
        r"apartment|the flat)|go out of the house|eat|out of the house|see (?:my family|my friends|anyone))",
        r"(?:lock|locks|locking|keeps|kept|keep|chains?|chained|tie|tied|ties) me (?:locked|prisoner|in (?:my|the|a) "
        r"(?:room|"
        r"basement|house|closet|cellar|cupboard|attic) (?:for|all|every|when|without|as punishment|again)|trapped|"
        r"captive)",
        r"(?:afraid|scared|terrified|frightened|fear)(?: (?:of|that))? (?:to go (?:back )?home(?! alone)|going "
        r"(?:back )?home(?! alone)|(?:my (?:\w+ )?"
        r"<close>|him|he|she)(?: (?:will|might|is going to|may|ll|could) (?:hit|hurt|beat|kill|find|come)\w*|<stop>))",
        r"(?:hell|he will|shell|she will|theyll|they will|he is going to|hes going to|shes going to|hes gonna|he "
        r"said he would|"
        r"my (?:\w+ )?<close> will|my (?:\w+ )?<close> is going to) (?:kill|hurt|beat|hit) (?:me|us)(?: again| if i "
        r"(?:leave|tell|go|"
        r"talk|call|try|dont|say|speak))",
        r"bruises? (?:from|that|because|all over|on my)(?=.*\b(?:he|she|him|husband|boyfriend|dad|father|mother|"
        r"partner|wife)\b)",
    ),
}

#: "Are you a bot?" and its kin, over `plain` text.
QUESTION = _any(
    r"(?:are|r) (?:you|u|ya)<some> (?:<what>)(?:<ask>)",
    r"(?:am i|are we|do i|did i|have i been|i am|im)<some> (?:talk|talking|chat|chatting|speak|speaking|text|texting|"
    r"writing) (?:to|"
    r"with)<some> (?:<what>)(?:<ask>)",
    r"(?:who|what)(?: exactly)? am i<some> (?:talking|chatting|speaking|texting|writing) (?:to|with)",
    r"(?:youre|ur|(?:you|u) (?:are|r)|(?:you|u) (?:sound like|seem like|must be|might be|feel like|act like|talk "
    r"like|seem|sound))(?:<some> "
    r"(?:bot|chat ?bot|robot|ai|machine|computer|program|real (?:person|human)|chat ?gpt|language model)| not<some> "
    r"(?:human|real))"
    r"(?:<ask>)",
    r"is this<some> (?:<what>)(?:<ask>)|is it<some> (?:person|human|human being)(?:<ask>)",
    r"is there<some> (?:person|human|human being|one|somebody|anybody|someone|anyone)(?: real| human)? (?:behind|on "
    r"the other|there|"
    r"reading|typing|writing)",
    r"^(?:\w+[ ,]+)?(?:what|who)(?: exactly| on earth| the hell)? are (?:you|u)(?: exactly| really| actually| then| "
    r"even)?"
    r"\s*(?:[.!?]|$)",
    r"(?:prove|show me|how (?:do|can|could) i (?:know|tell|be sure)|i dont (?:think|believe)|i doubt)(?: me| that)? "
    r"(?:you|u) ?(?:are|"
    r"re)?<some> (?:<what>)(?:<ask>)",
    r"do (?:you|u)(?: really| actually| even)? (?:exist|have (?:a body|a soul|a brain|a heart|feelings|emotions|"
    r"consciousness))"
    r"(?: in real life)?(?:<ask>)",
    r"(?:who|what company) (?:made|programmed|created|built|trained|coded) (?:you|u)|were (?:you|u) (?:programmed|"
    r"trained|coded)",
)
